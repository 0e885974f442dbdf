//! Arguments for workflows and signals, from the command line or a file.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::Path,
};

use bytes::Bytes;
use onward_proto::v1::Payload;
use serde_json::value::RawValue;

use crate::{
    args::InputArgs,
    error::{Error, Result},
};

/// Checks one argument. It is sent as it was typed, so that no digit of a number is lost.
pub(crate) fn json(text: &str) -> Result<String, String> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(raw) => Ok(raw.get().to_owned()),
        Err(error) => Err(format!("not JSON: {error}; a string needs its quotes, as in '\"Ada\"'")),
    }
}

/// Checks one `name=JSON`.
pub(crate) fn named(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=JSON")?;
    Ok((name.to_owned(), json(value)?))
}

/// The payload of a JSON text.
pub(crate) fn payload(json: &str) -> Payload {
    Payload {
        content_type: "json".to_owned(),
        data: Bytes::copy_from_slice(json.as_bytes()),
        metadata: BTreeMap::new(),
    }
}

impl InputArgs {
    /// The arguments, one payload each.
    pub(crate) fn payloads(&self) -> Result<Vec<Payload>> {
        match &self.input_file {
            None => Ok(self.input.iter().map(|text| payload(text)).collect()),
            Some(path) => from_file(path),
        }
    }
}

fn from_file(path: &Path) -> Result<Vec<Payload>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let path = path.display();
    let text = text.map_err(|error| Error::Failed(format!("cannot read {path}: {error}")))?;
    let arguments: Vec<&RawValue> = serde_json::from_str(&text).map_err(|error| {
        Error::Failed(format!(
            "{path} does not hold a JSON array with one entry per argument: {error}"
        ))
    })?;
    Ok(arguments.into_iter().map(|raw| payload(raw.get())).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn arguments_are_sent_as_typed() {
        for text in ["1.10", "340282366920938463463374607431768211455", r#"{"b":1,"a":2}"#, "-5"] {
            assert_eq!(json(text).unwrap(), text);
        }
        assert_eq!(json(" [1] ").unwrap(), "[1]");
    }

    #[test]
    fn a_bare_word_is_told_about_quotes() {
        let error = json("Ada").unwrap_err();
        assert!(error.ends_with(r#"a string needs its quotes, as in '"Ada"'"#), "{error}");
    }

    #[test]
    fn a_file_holds_one_entry_per_argument() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "[ {\"a\": 1},\n 2 ]").unwrap();
        let payloads = from_file(file.path()).unwrap();
        assert_eq!(
            payloads.iter().map(|p| &p.data[..]).collect::<Vec<_>>(),
            [&b"{\"a\": 1}"[..], b"2"]
        );

        fs::write(file.path(), "{}").unwrap();
        assert!(
            from_file(file.path())
                .unwrap_err()
                .text()
                .unwrap()
                .contains("does not hold a JSON array")
        );
    }
}
