//! The messages as JSON: what scripts read, and what a saved history looks like as text.
//!
//! The form follows the `.proto` files by reflection, so a new field is there the day it is added:
//!
//! - keys are the fields' own names, snake case; unset messages, empty ids and unset times are left out;
//! - a `…_at_us` or `time_us` field becomes RFC 3339 text under its name without `_us`, to the microsecond;
//! - 16-byte ids become UUIDs, other bytes base64, `fixed64` (hashes, incarnations) 16 hex digits;
//! - an enum becomes its short name: `WORKFLOW_STATUS_RUNNING` is `running`;
//! - a JSON payload is shown as the JSON text it is, byte for byte; every other payload, and a JSON payload
//!   that looks like this form, is `{"content_type": …, "base64": …, "metadata": {…}}`.
//!
//! Nothing is lost on the way: [`from_str`] gives back the message that [`to_string`] was given.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::LazyLock};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    MessageDescriptor, ReflectMessage, Value,
};
use serde::{
    Deserialize, Serialize, Serializer,
    ser::{Error as _, SerializeMap, SerializeSeq},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::v1;

/// Messages nest no deeper than prost itself reads them.
const MAX_DEPTH: usize = 100;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).expect("our own descriptors are valid")
});

/// A message whose descriptor can be found by name.
pub trait Described: Message + Default + private::Sealed {
    #[doc(hidden)]
    const NAME: &'static str;
}

mod private {
    pub trait Sealed {}
}

macro_rules! described {
    ($($message:ident),* $(,)?) => {$(
        impl private::Sealed for v1::$message {}
        impl Described for v1::$message {
            const NAME: &'static str = concat!("onward.v1.", stringify!($message));
        }
    )*};
}

described!(
    DescribeWorkflowResponse,
    Failure,
    History,
    HistoryEvent,
    Payload,
    WorkflowInfo,
    WorkflowOutcome,
);

/// Lends a message a `Serialize`, for `serde_json` and no other format.
///
/// ```
/// # use onward_proto::{json::Json, v1::Payload};
/// let payload = Payload { content_type: "json".into(), data: "[1,2]".into(), ..Default::default() };
/// assert_eq!(serde_json::to_string(&Json(&payload)).unwrap(), "[1,2]");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Json<'a, M>(pub &'a M);

impl<M: Described> Serialize for Json<'_, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut message = DynamicMessage::new(descriptor::<M>());
        message.transcode_from(self.0).map_err(S::Error::custom)?;
        Fields(&message).serialize(serializer)
    }
}

/// The message as one line of JSON.
pub fn to_string<M: Described>(message: &M) -> String {
    serde_json::to_string(&Json(message)).expect("every message has a JSON form")
}

/// Reads what [`to_string`] wrote.
///
/// # Errors
/// [`ReadError`] names the place and what is wrong with it: not JSON, a field that this build does not know,
/// or a value of the wrong kind.
pub fn from_str<M: Described>(text: &str) -> Result<M, ReadError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(ReadError::new)?;
    let message = read_message(&descriptor::<M>(), raw, 0)?;
    message.transcode_to().map_err(ReadError::new)
}

/// A JSON text that is not the message it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    path: String,
    reason: String,
}

impl ReadError {
    fn new(reason: impl fmt::Display) -> Self {
        Self { path: String::new(), reason: reason.to_string() }
    }

    fn at(mut self, place: impl fmt::Display) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{place}{dot}{}", self.path);
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ReadError {}

fn descriptor<M: Described>() -> MessageDescriptor {
    POOL.get_message_by_name(M::NAME).expect("the descriptors hold every message")
}

fn is_payload(message: &MessageDescriptor) -> bool {
    message.full_name() == "onward.v1.Payload"
}

/// The name of a field that holds a point in time, without its unit.
fn time_name(field: &FieldDescriptor) -> Option<&str> {
    let name = field.name().strip_suffix("_us")?;
    (name == "time" || name.ends_with("_at")).then_some(name)
}

/// `WORKFLOW_STATUS_` for the enum `WorkflowStatus`.
fn prefix(values: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for letter in values.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    prefix
}

// ---------------------------------------------------------------------------------------- writing

struct Fields<'a>(&'a DynamicMessage);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.0.descriptor();
        if is_payload(&descriptor) {
            return write_payload(self.0, serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        for field in descriptor.fields() {
            if field.supports_presence() && !self.0.has_field(&field) {
                continue;
            }
            let value = self.0.get_field(&field);
            match value.as_ref() {
                Value::Bytes(bytes) if bytes.is_empty() => {}
                Value::I64(0) if time_name(&field).is_some() => {}
                Value::I64(us) => match (time_name(&field), jiff::Timestamp::from_microsecond(*us))
                {
                    (Some(name), Ok(time)) => map.serialize_entry(name, &format!("{time:.6}"))?,
                    _ => map.serialize_entry(field.name(), us)?,
                },
                value => map.serialize_entry(field.name(), &Item { kind: &field.kind(), value })?,
            }
        }
        map.end()
    }
}

struct Item<'a> {
    kind: &'a Kind,
    value: &'a Value,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::I32(value) => serializer.serialize_i32(*value),
            Value::I64(value) => serializer.serialize_i64(*value),
            Value::U32(value) => serializer.serialize_u32(*value),
            Value::U64(value) if matches!(self.kind, Kind::Fixed64) => {
                serializer.serialize_str(&format!("{value:016x}"))
            }
            Value::U64(value) => serializer.serialize_u64(*value),
            Value::F32(value) => serializer.serialize_f32(*value),
            Value::F64(value) => serializer.serialize_f64(*value),
            Value::String(value) => serializer.serialize_str(value),
            Value::Bytes(value) => match Uuid::from_slice(value) {
                Ok(id) => serializer.collect_str(&id),
                Err(_) => serializer.serialize_str(&BASE64_STANDARD.encode(value)),
            },
            Value::EnumNumber(number) => {
                let Kind::Enum(values) = self.kind else {
                    return Err(S::Error::custom("an enum number in a field that is no enum"));
                };
                match values.get_value(*number) {
                    Some(value) => {
                        let prefix = prefix(values);
                        let name = value.name().strip_prefix(&prefix).unwrap_or(value.name());
                        serializer.serialize_str(&name.to_ascii_lowercase())
                    }
                    None => serializer.serialize_i32(*number),
                }
            }
            Value::Message(message) => Fields(message).serialize(serializer),
            Value::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for value in items {
                    list.serialize_element(&Item { kind: self.kind, value })?;
                }
                list.end()
            }
            Value::Map(entries) => {
                let Kind::Message(entry) = self.kind else {
                    return Err(S::Error::custom("a map whose field has no entry type"));
                };
                let kind = entry.map_entry_value_field().kind();
                let mut sorted: Vec<_> =
                    entries.iter().map(|(key, value)| (key_text(key), value)).collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                let mut map = serializer.serialize_map(Some(sorted.len()))?;
                for (key, value) in sorted {
                    map.serialize_entry(key.as_ref(), &Item { kind: &kind, value })?;
                }
                map.end()
            }
        }
    }
}

fn key_text(key: &MapKey) -> Cow<'_, str> {
    match key {
        MapKey::String(key) => Cow::Borrowed(key),
        MapKey::Bool(key) => Cow::Owned(key.to_string()),
        MapKey::I32(key) => Cow::Owned(key.to_string()),
        MapKey::I64(key) => Cow::Owned(key.to_string()),
        MapKey::U32(key) => Cow::Owned(key.to_string()),
        MapKey::U64(key) => Cow::Owned(key.to_string()),
    }
}

/// A payload whose text cannot stand for itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongPayload {
    content_type: String,
    base64: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

fn write_payload<S: Serializer>(
    message: &DynamicMessage,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let payload: v1::Payload = message.transcode_to().map_err(S::Error::custom)?;
    if let Some(text) = plain_json(&payload) {
        return text.serialize(serializer);
    }
    LongPayload {
        content_type: payload.content_type,
        base64: BASE64_STANDARD.encode(&payload.data),
        metadata: payload
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), BASE64_STANDARD.encode(value)))
            .collect(),
    }
    .serialize(serializer)
}

/// The JSON text of a payload that is nothing but that text.
pub fn plain_json(payload: &v1::Payload) -> Option<&RawValue> {
    if payload.content_type != "json" || !payload.metadata.is_empty() {
        return None;
    }
    let text = str::from_utf8(&payload.data).ok()?;
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    // White space around it would be lost, and the long form means something else when it is read back.
    let whole = raw.get().len() == text.len();
    (whole && serde_json::from_str::<LongPayload>(text).is_err()).then_some(raw)
}

// ---------------------------------------------------------------------------------------- reading

fn read_message(
    descriptor: &MessageDescriptor,
    raw: &RawValue,
    depth: usize,
) -> Result<DynamicMessage, ReadError> {
    if depth > MAX_DEPTH {
        return Err(ReadError::new(format!("nests deeper than {MAX_DEPTH} messages")));
    }
    let mut message = DynamicMessage::new(descriptor.clone());
    if is_payload(descriptor) {
        message.transcode_from(&read_payload(raw)?).map_err(ReadError::new)?;
        return Ok(message);
    }
    let entries: BTreeMap<String, &RawValue> = read_as(raw)?;
    for (key, raw) in entries {
        if let Some(field) = descriptor.get_field_by_name(&key) {
            let value = read_field(&field, raw, depth).map_err(|error| error.at(&key))?;
            message.try_set_field(&field, value).map_err(ReadError::new)?;
        } else if let Some(field) = descriptor.get_field_by_name(&format!("{key}_us")) {
            let time: jiff::Timestamp = read_as::<Cow<'_, str>>(raw)?
                .parse()
                .map_err(|error| ReadError::new(error).at(&key))?;
            message
                .try_set_field(&field, Value::I64(time.as_microsecond()))
                .map_err(ReadError::new)?;
        } else {
            return Err(ReadError::new("this version does not know this field").at(&key));
        }
    }
    Ok(message)
}

fn read_field(field: &FieldDescriptor, raw: &RawValue, depth: usize) -> Result<Value, ReadError> {
    if field.is_list() {
        let items: Vec<&RawValue> = read_as(raw)?;
        let values = items.into_iter().enumerate().map(|(index, raw)| {
            read_item(&field.kind(), raw, depth).map_err(|error| error.at(format!("[{index}]")))
        });
        return Ok(Value::List(values.collect::<Result<_, _>>()?));
    }
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return Err(ReadError::new("a map whose field has no entry type"));
        };
        let kind = entry.map_entry_value_field().kind();
        let entries: BTreeMap<String, &RawValue> = read_as(raw)?;
        let values = entries.into_iter().map(|(key, raw)| {
            let value = read_item(&kind, raw, depth).map_err(|error| error.at(&key))?;
            Ok((MapKey::String(key), value))
        });
        return Ok(Value::Map(values.collect::<Result<_, ReadError>>()?));
    }
    read_item(&field.kind(), raw, depth)
}

fn read_item(kind: &Kind, raw: &RawValue, depth: usize) -> Result<Value, ReadError> {
    Ok(match kind {
        Kind::Bool => Value::Bool(read_as(raw)?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(read_as(raw)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(read_as(raw)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(read_as(raw)?),
        Kind::Uint64 => Value::U64(read_as(raw)?),
        Kind::Fixed64 => {
            let text: Cow<'_, str> = read_as(raw)?;
            Value::U64(u64::from_str_radix(&text, 16).map_err(ReadError::new)?)
        }
        Kind::Float => Value::F32(read_as(raw)?),
        Kind::Double => Value::F64(read_as(raw)?),
        Kind::String => Value::String(read_as(raw)?),
        Kind::Bytes => Value::Bytes(read_bytes(&read_as::<Cow<'_, str>>(raw)?)?),
        Kind::Enum(values) => Value::EnumNumber(read_enum(values, raw)?),
        Kind::Message(message) => Value::Message(read_message(message, raw, depth + 1)?),
    })
}

fn read_enum(values: &EnumDescriptor, raw: &RawValue) -> Result<i32, ReadError> {
    if let Ok(number) = serde_json::from_str(raw.get()) {
        return Ok(number);
    }
    let text: Cow<'_, str> = read_as(raw)?;
    let name = prefix(values) + &text.to_ascii_uppercase();
    let value = values.get_value_by_name(&name);
    value
        .map(|value| value.number())
        .ok_or_else(|| ReadError::new(format!("`{text}` is no {}", values.name())))
}

/// Base64 has no dashes, so a UUID never passes for it.
fn read_bytes(text: &str) -> Result<Bytes, ReadError> {
    if text.len() == 36
        && let Ok(id) = Uuid::parse_str(text)
    {
        return Ok(Bytes::copy_from_slice(id.as_bytes()));
    }
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(ReadError::new)
}

fn read_payload(raw: &RawValue) -> Result<v1::Payload, ReadError> {
    let Ok(long) = serde_json::from_str::<LongPayload>(raw.get()) else {
        return Ok(v1::Payload {
            content_type: "json".into(),
            data: Bytes::copy_from_slice(raw.get().as_bytes()),
            metadata: BTreeMap::new(),
        });
    };
    let decode = |text: &str| BASE64_STANDARD.decode(text).map(Bytes::from).map_err(ReadError::new);
    Ok(v1::Payload {
        data: decode(&long.base64)?,
        content_type: long.content_type,
        metadata: long
            .metadata
            .into_iter()
            .map(|(key, value)| Ok((key, decode(&value)?)))
            .collect::<Result<_, ReadError>>()?,
    })
}

fn read_as<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, ReadError> {
    serde_json::from_str(raw.get()).map_err(ReadError::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use v1::{history_event::Attributes, *};

    fn json_payload(text: &str) -> Payload {
        Payload {
            content_type: "json".into(),
            data: Bytes::copy_from_slice(text.as_bytes()),
            metadata: BTreeMap::new(),
        }
    }

    fn event(event_id: u64, attributes: Attributes) -> HistoryEvent {
        HistoryEvent {
            event_id,
            time_us: 1_790_000_000_123_456,
            received_at_us: 0,
            attributes: Some(attributes),
        }
    }

    fn failure(depth: usize) -> Failure {
        Failure {
            kind: "PaymentError::Declined".into(),
            message: "card declined".into(),
            next_delay_us: (depth == 0).then_some(0),
            cause: (depth > 0).then(|| Box::new(failure(depth - 1))),
            ..Failure::default()
        }
    }

    fn history() -> History {
        History {
            events: vec![
                event(
                    1,
                    Attributes::WorkflowExecutionStarted(WorkflowExecutionStarted {
                        workflow_type: "order".into(),
                        arguments: vec![
                            json_payload(
                                r#"{"b": 1.10, "a":340282366920938463463374607431768211455}"#,
                            ),
                            json_payload(" [1] "),
                            json_payload("not json"),
                            json_payload(r#"{"content_type":"json","base64":"e30="}"#),
                            Payload {
                                content_type: "binary/bincode2".into(),
                                data: Bytes::from_static(&[0, 255, 7]),
                                metadata: [("codec".to_owned(), Bytes::from_static(b"x"))].into(),
                            },
                        ],
                        run_id: Bytes::from_static(&[7; 16]),
                        seed: Bytes::from_static(&[200; 32]),
                        memo: [("note".to_owned(), json_payload("\"hi\""))].into(),
                        run_timeout_us: 30_000_000,
                        ..WorkflowExecutionStarted::default()
                    }),
                ),
                event(
                    2,
                    Attributes::ActivityScheduled(ActivityScheduled {
                        number: 1,
                        arguments_hash: u64::MAX - 1,
                        priority: -3,
                        retry: Some(RetryPolicy {
                            backoff_coefficient: 1.5,
                            non_retryable_kinds: vec!["A".into(), "B".into()],
                            ..RetryPolicy::default()
                        }),
                        ..ActivityScheduled::default()
                    }),
                ),
                event(
                    3,
                    Attributes::ActivityFailed(ActivityFailed {
                        number: 1,
                        failure: Some(failure(3)),
                        cause: ActivityFailureCause::Exhausted.into(),
                        ..ActivityFailed::default()
                    }),
                ),
                event(
                    4,
                    Attributes::WorkflowTaskCompleted(WorkflowTaskCompleted {
                        task_id: Some(TaskId { incarnation: 1, counter: 2 }),
                        handed_out_at_us: i64::MAX,
                        sdk_flags: vec![1, 2],
                        ..WorkflowTaskCompleted::default()
                    }),
                ),
                event(5, Attributes::TimerFired(TimerFired::default())),
            ],
        }
    }

    #[test]
    fn a_history_comes_back_as_it_went_in() {
        let history = history();
        let text = to_string(&history);
        assert_eq!(from_str::<History>(&text).unwrap(), history, "{text}");
        let pretty = serde_json::to_string_pretty(&Json(&history)).unwrap();
        assert_eq!(from_str::<History>(&pretty).unwrap(), history, "{pretty}");
    }

    #[test]
    fn what_people_read_is_readable() {
        let text = to_string(&history().events[2]);
        for part in [
            r#""event_id":3"#,
            r#""time":"2026-09-21T14:13:20.123456Z""#,
            r#""activity_failed":{"number":1"#,
            r#""cause":"exhausted""#,
            r#""kind":"PaymentError::Declined""#,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let text = to_string(&history().events[0]);
        for part in [
            r#""arguments":[{"b": 1.10, "a":340282366920938463463374607431768211455},"#,
            r#""run_id":"07070707-0707-0707-0707-070707070707""#,
            r#""memo":{"note":"hi"}"#,
            r#"{"content_type":"binary/bincode2","base64":"AP8H","metadata":{"codec":"eA=="}}"#,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }

    #[test]
    fn a_wrong_file_is_told_where_it_is_wrong() {
        for (text, expected) in [
            ("{", "EOF while parsing an object at line 1 column 1"),
            (r#"{"event":[]}"#, "event: this version does not know this field"),
            (
                r#"{"events":[{"timer_fired":{"number":-1}}]}"#,
                "events[0].timer_fired.number: invalid value: integer `-1`, expected u32 at line 1 column 2",
            ),
            (
                r#"{"events":[{},{"activity_failed":{"cause":"bored"}}]}"#,
                "events[1].activity_failed.cause: `bored` is no ActivityFailureCause",
            ),
        ] {
            assert_eq!(from_str::<History>(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_nesting_bomb_is_an_error() {
        let text =
            format!("{}{}", r#"{"cause":"#.repeat(5_000), "{}".to_owned() + &"}".repeat(5_000));
        let error = from_str::<Failure>(&text).unwrap_err();
        assert!(error.to_string().ends_with("nests deeper than 100 messages"), "{error}");
    }
}
