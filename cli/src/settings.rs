//! What a server is started with: flags over the environment (which clap reads) over a TOML file over defaults.

use std::{
    env, fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use onward_proto::DEFAULT_PORT;
use serde::{Deserialize, Deserializer, de};

use crate::{
    args::{self, HttpListen, LogFormat, ServeArgs, StoreArgs},
    error::{Error, Result},
};

/// The TOML file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default, deserialize_with = "listen")]
    listen: Option<SocketAddr>,
    #[serde(default, deserialize_with = "http_listen")]
    http_listen: Option<HttpListen>,
    #[serde(default)]
    insecure: bool,
    log_format: Option<LogFormat>,
    log: Option<String>,
    data_dir: Option<PathBuf>,
    store: Option<String>,
    #[serde(default)]
    unsafe_allow: bool,
    #[serde(default)]
    pg_transaction_pooling: bool,
}

impl File {
    /// Reads the file, if one is named.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed = |what: &str, error: &dyn fmt::Display| {
            Error::Failed(format!("{what} {}: {}", path.display(), error.to_string().trim_end()))
        };
        let text = fs::read_to_string(path).map_err(|error| failed("cannot read", &error))?;
        Self::parse(&text).map_err(|error| failed("wrong setting in", &error))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong, and where. The line itself is not shown: it may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let at = error.span().and_then(|span| text.get(..span.start));
            let place = at.map_or_else(String::new, |before| {
                format!("line {}: ", before.matches('\n').count() + 1)
            });
            place + error.message()
        })
    }
}

fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    args::listen(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn http_listen<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HttpListen>, D::Error> {
    args::http_listen(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

/// Where a server listens and how it logs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) http_listen: Option<SocketAddr>,
    pub(crate) log_format: LogFormat,
    pub(crate) log: String,
}

impl Settings {
    /// Merges flags and file; refuses to let other machines in unasked.
    pub(crate) fn merge(args: &ServeArgs, file: &File) -> Result<Self> {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let listen = args.listen.or(file.listen).unwrap_or_else(|| local(DEFAULT_PORT));
        let http_listen = match args.http_listen.or(file.http_listen) {
            None => Some(local(DEFAULT_PORT + 1)),
            Some(HttpListen::At(address)) => Some(address),
            Some(HttpListen::Off) => None,
        };
        if !(args.insecure || file.insecure) {
            for (flag, address) in [("--listen", Some(listen)), ("--http-listen", http_listen)] {
                if let Some(address) = address
                    && !address.ip().to_canonical().is_loopback()
                {
                    return Err(Error::Usage(format!(
                        "{flag} {address} lets other machines in, and this server has neither TLS nor \
                         authentication; add --insecure if you trust the network"
                    )));
                }
            }
        }
        Ok(Self {
            listen,
            http_listen,
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
            log: args.log.clone().or_else(|| file.log.clone()).unwrap_or_else(|| "info".to_owned()),
        })
    }
}

/// Where runs are kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) url: String,
    pub(crate) unsafe_allow: bool,
    pub(crate) pg_transaction_pooling: bool,
}

/// The store of `onward server`.
pub(crate) fn server_store(args: StoreArgs, file: &File) -> Result<Store> {
    let url = args.url.or_else(|| file.store.clone()).ok_or_else(|| {
        Error::Usage(
            "no store: name one with --store postgres://… or --store sqlite://…, or try 'onward dev'"
                .to_owned(),
        )
    })?;
    Ok(Store {
        url,
        unsafe_allow: args.unsafe_allow || file.unsafe_allow,
        pg_transaction_pooling: args.pg_transaction_pooling || file.pg_transaction_pooling,
    })
}

/// The store of `onward dev`: one file in the data directory, which is made if it is not there.
pub(crate) fn dev_store(data_dir: Option<PathBuf>, file: &File) -> Result<Store> {
    let directory = match data_dir.or_else(|| file.data_dir.clone()) {
        Some(directory) => directory,
        None => default_data_dir()?,
    };
    let failed = |error: &dyn fmt::Display| {
        Error::Failed(format!("cannot use data directory {}: {error}", directory.display()))
    };
    let absolute = std::path::absolute(&directory).map_err(|error| failed(&error))?;
    // A directory that is there already keeps its mode: it may be somebody's home.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&absolute)
        .map_err(|error| failed(&error))?;
    let path = absolute.join("onward.db");
    let path = path.to_str().ok_or_else(|| failed(&"its name is not UTF-8"))?;
    Ok(Store {
        url: format!("sqlite://{path}"),
        unsafe_allow: false,
        pg_transaction_pooling: false,
    })
}

fn default_data_dir() -> Result<PathBuf> {
    let absolute =
        |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|share| share.join("onward"))
        .ok_or_else(|| {
            Error::Usage("no home directory: name a directory with --data-dir".to_owned())
        })
}

/// A store's address with its password hidden, for people and logs.
pub fn without_secrets(url: &str) -> String {
    let (scheme, rest) = match url.find("://") {
        Some(end) => url.split_at(end + "://".len()),
        None => ("", url),
    };
    let mut shown = scheme.to_owned();
    let rest = match rest.rsplit_once('@') {
        // A path may hold any character.
        Some((user, host)) if scheme != "sqlite://" => {
            // Whoever forgets to encode a password may have any character in it, up to the last @.
            let name = user.split([':', '/', '?', '@']).next().unwrap_or_default();
            shown.push_str(name);
            shown.push_str(if name.len() < user.len() { ":***@" } else { "@" });
            // Or the @ is one of a password among the parameters.
            if user.contains('?') && user.contains("password") { "***" } else { host }
        }
        _ => rest,
    };
    let Some((path, query)) = rest.split_once('?') else { return shown + rest };
    shown.push_str(path);
    shown.push('?');
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}=***"),
        _ => parameter.to_owned(),
    });
    shown + &parameters.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn no_flags() -> ServeArgs {
        ServeArgs {
            listen: None,
            http_listen: None,
            insecure: false,
            log_format: None,
            log: None,
            config: None,
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: File = toml::from_str(
            "listen = '127.0.0.1:1'\nhttp_listen = 'off'\nlog_format = 'json'\nlog = 'warn'\n",
        )
        .unwrap();
        let settings = Settings::merge(&no_flags(), &File::default()).unwrap();
        assert_eq!((settings.listen.port(), settings.http_listen.unwrap().port()), (7450, 7451));

        let flags = ServeArgs { log: Some("debug".into()), ..no_flags() };
        let settings = Settings::merge(&flags, &file).unwrap();
        assert_eq!((settings.listen.port(), settings.http_listen), (1, None));
        assert_eq!((settings.log_format, settings.log.as_str()), (LogFormat::Json, "debug"));
    }

    #[test]
    fn other_machines_stay_out_until_asked_in() {
        for (listen, http) in
            [("0.0.0.0:1", "off"), ("127.0.0.1:1", "[::]:1"), ("10.1.2.3:1", "off")]
        {
            let mut flags = ServeArgs {
                listen: Some(listen.parse().unwrap()),
                http_listen: Some(args::http_listen(http).unwrap()),
                ..no_flags()
            };
            let error = Settings::merge(&flags, &File::default()).unwrap_err();
            assert!(error.text().unwrap().contains("add --insecure"), "{error:?}");
            flags.insecure = true;
            Settings::merge(&flags, &File::default()).unwrap();
        }
        for listen in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            let flags = ServeArgs { listen: Some(listen.parse().unwrap()), ..no_flags() };
            Settings::merge(&flags, &File::default()).unwrap();
        }
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "listne = '127.0.0.1:1'").unwrap();
        let error = File::read(Some(file.path())).unwrap_err();
        assert!(error.text().unwrap().contains("unknown field `listne`"), "{error:?}");
    }

    #[test]
    fn a_wrong_setting_is_placed_and_a_password_beside_it_is_not_shown() {
        let url = "postgres://u:secret@h/db";
        for wrong in [
            format!("insecure = true\nstore = {url}"),
            format!("insecure = true\nstore = '{url}\nlog = 'warn'"),
            format!("insecure = true\nstroe = '{url}'"),
            format!("insecure = true\nstore = ['{url}']"),
            format!("insecure = true\nstore = '{url}' x"),
            format!("insecure = true\nlisten = '{url}'"),
            format!("insecure = true\ninsecure = '{url}'"),
        ] {
            let error = File::parse(&wrong).unwrap_err();
            assert!(error.starts_with("line 2: "), "{wrong}: {error}");
            assert!(!error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_data_directory_is_made_for_its_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/b");
        let store = dev_store(Some(directory.clone()), &File::default()).unwrap();
        assert_eq!(store.url, format!("sqlite://{}/onward.db", directory.display()));
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            (
                "postgres://u:s%40cret@h:5432/db?sslmode=require",
                "postgres://u:***@h:5432/db?sslmode=require",
            ),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://h/db?user=u&password=secret", "postgres://h/db?user=u&password=***"),
            ("postgres://u:a@b@h", "postgres://u:***@h"),
            ("postgres://u:a/b@h/db", "postgres://u:***@h/db"),
            ("postgres://u:a?b@h/db", "postgres://u:***@h/db"),
            ("postgres://u:a:b#c@h/db", "postgres://u:***@h/db"),
            ("postgres://u@h/db?password=a@secret", "postgres://u:***@***"),
            ("u:secret@h/db", "u:***@h/db"),
            ("sqlite:///var/lib/a@b.db", "sqlite:///var/lib/a@b.db"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
