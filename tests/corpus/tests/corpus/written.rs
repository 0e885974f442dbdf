//! Whether the corpus has everything that the server can write into a history: each kind of event,
//! each field of it, each value of its enums. The `.proto` files say what there is, so what is new
//! in them is missing here until it has a history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::LazyLock,
};

use onward_corpus::histories;
use onward_proto::{FILE_DESCRIPTOR_SET, v1::HistoryEvent};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use quote::ToTokens as _;
use syn::visit::{self, Visit};

/// What no history of this server and this SDK can have, and why.
const NOT_WRITTEN: &[(&str, &str)] = &[
    ("WorkflowExecutionStarted.first_run_id", "no run is continued as another"),
    ("SignalReceived.handed_over", "no run is continued as another"),
    ("TimerStarted.refused", "such a timer closes the run; old servers let it fire"),
    ("Failure.stack", "the SDK names the place of a panic in the message"),
    ("Payload.metadata", "no codec of the SDK has any"),
];

static EVENT: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    pool.get_message_by_name("onward.v1.HistoryEvent").unwrap()
});

fn name_of(field: &FieldDescriptor) -> String {
    format!("{}.{}", field.parent_message().name(), field.name())
}

/// Everything that a message can hold.
fn possible(message: &MessageDescriptor, all: &mut BTreeSet<String>) {
    for field in message.fields() {
        if !all.insert(name_of(&field)) {
            continue;
        }
        match field.kind() {
            Kind::Message(_) if field.is_map() => {
                if let Kind::Message(entry) = field.kind()
                    && let Kind::Message(value) = entry.map_entry_value_field().kind()
                {
                    possible(&value, all);
                }
            }
            Kind::Message(inner) => possible(&inner, all),
            // The first value is that of a field that is not set.
            Kind::Enum(values) => {
                all.extend(values.values().skip(1).map(|value| value.name().to_owned()));
            }
            _ => {}
        }
    }
}

/// Everything that a message holds.
fn held(message: &DynamicMessage, all: &mut BTreeSet<String>) {
    for (field, value) in message.fields() {
        all.insert(name_of(&field));
        each(&field, value, all);
    }
}

fn each(field: &FieldDescriptor, value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Message(inner) => held(inner, all),
        Value::List(items) => items.iter().for_each(|item| each(field, item, all)),
        Value::Map(entries) => entries.values().for_each(|item| each(field, item, all)),
        Value::EnumNumber(number) => {
            if let Kind::Enum(values) = field.kind() {
                let value = values.get_value(*number);
                all.insert(value.map_or_else(|| number.to_string(), |it| it.name().to_owned()));
            }
        }
        _ => {}
    }
}

/// Everything that an event can hold.
fn possible_in_events() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    possible(&EVENT, &mut all);
    all
}

/// What each event of the corpus holds.
fn held_by_events() -> Vec<BTreeSet<String>> {
    let held_by = |recorded: &HistoryEvent| {
        let bytes = recorded.encode_to_vec();
        let mut all = BTreeSet::new();
        held(&DynamicMessage::decode(EVENT.clone(), bytes.as_slice()).unwrap(), &mut all);
        all
    };
    let saved = histories();
    saved.iter().flat_map(|(_, history)| &history.events).map(held_by).collect()
}

/// What is possible, is written, and is in none of these events.
fn missing<'a>(events: impl IntoIterator<Item = &'a BTreeSet<String>>) -> Vec<String> {
    let there: BTreeSet<&String> = events.into_iter().flatten().collect();
    let is_written = |name: &String| NOT_WRITTEN.iter().all(|(not, _)| not != name);
    possible_in_events()
        .into_iter()
        .filter(|name| is_written(name) && !there.contains(name))
        .collect()
}

#[test]
fn everything_that_the_server_writes_has_a_history() {
    let (there_is, events) = (possible_in_events(), held_by_events());
    assert!(there_is.len() > 100, "that is not our history: {there_is:?}");
    assert_eq!(missing(&events), [""; 0], "no history has it");
    for held in events.iter().flatten() {
        assert!(there_is.contains(held), "the .proto files do not know {held}");
        let exception = NOT_WRITTEN.iter().find(|(name, _)| name == held);
        assert!(exception.is_none(), "a history has {exception:?}");
    }
    for (name, _) in NOT_WRITTEN {
        assert!(there_is.contains(*name), "{name} is gone from the .proto files");
    }
}

#[test]
fn what_has_no_history_is_named() {
    let events = held_by_events();
    for lost in ["HistoryEvent.timer_cancelled", "ACTIVITY_TIMEOUT_KIND_HEARTBEAT", "Failure.cause"]
    {
        let rest = events.iter().filter(|held| !held.contains(lost));
        assert!(missing(rest).iter().any(|name| name == lost), "{lost} is not missed");
    }
}

/// An exception holds only while nobody makes one: in all the code that makes messages, the field is
/// said to be empty.
#[test]
fn nobody_writes_what_is_said_to_have_no_writer() {
    let mut makers = Makers::default();
    for folder in ["server/src/engine", "sdk/src"] {
        makers.folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder));
    }
    for (name, _) in NOT_WRITTEN {
        let values = makers.values.get(*name).cloned().unwrap_or_default();
        // To copy the field of another message is not to write it.
        let copy = format!(". {}", name.split('.').next_back().unwrap());
        let full = |value: &&String| !EMPTY.contains(&value.as_str()) && !value.contains(&copy);
        let full: Vec<&String> = values.iter().filter(full).collect();
        assert!(full.is_empty(), "{name} is set to {full:?}");
    }
    assert!(makers.values.contains_key("SignalReceived.handed_over"), "no maker was found");
}

/// How an empty field is written.
const EMPTY: &[&str] =
    &["None", "false", "String :: new ()", "bytes :: Bytes :: new ()", "BTreeMap :: new ()"];

/// What the code of the engine and of the SDK gives to each field of each message, as it is written.
#[derive(Default)]
struct Makers {
    values: BTreeMap<String, Vec<String>>,
}

impl Makers {
    fn folder(&mut self, folder: &Path) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                self.folder(&path);
            } else if path.file_stem().is_some_and(|stem| stem != "fixture") {
                let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
                self.visit_file(&file);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Makers {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.to_token_stream().to_string().contains("cfg (test)")
        };
        if !module.attrs.iter().any(is_test) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_expr_struct(&mut self, made: &'ast syn::ExprStruct) {
        if let Some(message) = made.path.segments.last() {
            for field in &made.fields {
                let name = format!("{}.{}", message.ident, field.member.to_token_stream());
                let value = field.expr.to_token_stream().to_string();
                self.values.entry(name).or_default().push(value);
            }
        }
        visit::visit_expr_struct(self, made);
    }
}
