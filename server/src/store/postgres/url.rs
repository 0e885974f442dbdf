//! Urls of databases, as people and providers of databases write them.

use sqlx::{ConnectOptions as _, postgres::PgConnectOptions};
use url::Url;

use super::super::OpenError;

/// The parameters that the driver knows, beside `options[…]`. It would write the value of any other
/// into the log, and that may be a secret.
const KNOWN: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Reads a url, and says which of its parameters are passed over.
///
/// # Errors
/// [`OpenError::PostgresUrl`].
pub(in crate::store) fn read_url(url: &str) -> Result<PgConnectOptions, OpenError> {
    let refused = |why: String| OpenError::PostgresUrl(why);
    let mut url = Url::parse(url).map_err(|error| refused(error.to_string()))?;
    for name in pass_over_unknown(&mut url) {
        tracing::warn!(parameter = name, "the driver does not know a parameter of the store url");
    }
    let options = PgConnectOptions::from_url(&url).map_err(|error| refused(error.to_string()))?;
    if names_a_user(&url) {
        return Ok(options);
    }
    Err(refused("it names no user; write postgres://user@host/database".to_owned()))
}

/// Takes out the parameters that the driver does not know; gives their names.
fn pass_over_unknown(url: &mut Url) -> Vec<String> {
    let is_known = |name: &str| KNOWN.contains(&name) || name.starts_with("options[");
    let owned = |(name, value): (_, _)| (String::from(name), String::from(value));
    let pairs: Vec<_> = url.query_pairs().map(owned).collect();
    let (known, unknown): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(name, _)| is_known(name));
    if !unknown.is_empty() {
        url.query_pairs_mut().clear().extend_pairs(known);
    }
    // What does not look like a name is maybe a part of a password that was not encoded.
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let shown = |name: String| if is_name(&name) { name } else { "***".to_owned() };
    unknown.into_iter().map(|(name, _)| shown(name)).collect()
}

/// Without a name the driver may log in as somebody else than meant.
fn names_a_user(url: &Url) -> bool {
    !url.username().is_empty()
        || url.query_pairs().any(|(name, value)| name == "user" && !value.is_empty())
        || std::env::var_os("PGUSER").is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_the_driver_does_not_know_is_passed_over_and_its_value_shown_to_nobody() {
        let url = "postgres://u@h/db?sslmode=require&channel_binding=require&sslpassword=secret\
                   &options[a.b]=c&1?b@h:x=y";
        let mut url = Url::parse(url).unwrap();
        assert_eq!(pass_over_unknown(&mut url), ["channel_binding", "sslpassword", "***"]);
        assert_eq!(url.query(), Some("sslmode=require&options%5Ba.b%5D=c"));
        assert!(pass_over_unknown(&mut url).is_empty());
    }

    #[test]
    fn a_url_without_a_user_is_refused() {
        let names = |url: &str| names_a_user(&Url::parse(url).unwrap());
        assert!(names("postgres://me@host/db"));
        assert!(names("postgres:///db?host=/tmp&user=me"));
        for url in ["postgres://host/db", "postgres://:secret@host/db", "postgres:///db?user="] {
            assert!(!names(url) || std::env::var_os("PGUSER").is_some(), "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_read_is_told_without_what_it_says() {
        for url in
            ["postgres://u:secret/b@h/db", "postgres://u:1?secret", "postgres://u@h/?port=secret"]
        {
            let error = read_url(url).unwrap_err();
            assert!(matches!(error, OpenError::PostgresUrl(_)), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
