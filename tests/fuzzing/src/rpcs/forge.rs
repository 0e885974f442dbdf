//! Messages drawn from their descriptors: nearly valid, with something odd here and there.
//!
//! A field is filled by its kind, so a new one is filled the day it is added; texts and bytes by
//! their name as well, and one whose name says nothing here is told by [`strangers`].

use std::collections::BTreeSet;

use bytes::Bytes;
use onward_proto::{MAX_DURATION_US, PROTOCOL};
use prost::Message as _;
use prost_reflect::{
    Cardinality, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, OneofDescriptor,
    ReflectMessage as _, Value,
};

/// The queue of those who mean no good. No worker of a customer polls it.
pub(super) const QUEUE: &str = "villains";
/// How many things of a kind are remembered.
const MEMORY: usize = 24;
/// Deepest nesting of messages, but for chains of causes.
const LEVELS: usize = 7;
/// Longest chain of causes: far deeper than a decoder follows.
const CAUSES: usize = 150;

/// What has been learned from answers, to be asked about again.
#[derive(Debug, Default)]
pub(super) struct Lore {
    /// Workflows of customers: these are looked at only.
    pub(super) orders: Vec<String>,
    run_ids: Vec<Bytes>,
    request_ids: Vec<Bytes>,
    /// Page tokens and positions.
    places: Vec<Bytes>,
    /// Workflow tasks that villains hold or held: each with its run.
    tasks: Vec<(DynamicMessage, Bytes)>,
    /// Tokens of attempts that they hold or held.
    attempts: Vec<DynamicMessage>,
}

impl Lore {
    /// Remembers whatever ids, tokens and tasks are in a message.
    pub(super) fn learn(&mut self, message: &DynamicMessage, rng: &mut fastrand::Rng) {
        let bytes = |name: &str| match message.get_field_by_name(name).as_deref() {
            Some(Value::Bytes(bytes)) if !bytes.is_empty() => Some(bytes.clone()),
            _ => None,
        };
        let run_id = bytes("run_id");
        if message.descriptor().name() == "ActivityToken" {
            keep(&mut self.attempts, message.clone(), rng);
        }
        if message.has_field_by_name("task_id")
            && let (Some(run_id), Some(Value::Message(task))) =
                (&run_id, message.get_field_by_name("task_id").as_deref())
        {
            keep(&mut self.tasks, (task.clone(), run_id.clone()), rng);
        }
        for place in ["next_page_token", "next_position"] {
            if let Some(place) = bytes(place) {
                keep(&mut self.places, place, rng);
            }
        }
        if let Some(run_id) = run_id {
            keep(&mut self.run_ids, run_id, rng);
        }
        for (_, value) in message.fields() {
            match value {
                Value::Message(inner) => self.learn(inner, rng),
                Value::List(list) => {
                    for inner in list.iter().filter_map(Value::as_message).take(8) {
                        self.learn(inner, rng);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Remembers one more; of many, it takes the place of any.
fn keep<T>(all: &mut Vec<T>, one: T, rng: &mut fastrand::Rng) {
    if all.len() < MEMORY {
        all.push(one);
    } else {
        all[rng.usize(0..MEMORY)] = one;
    }
}

/// Draws messages.
pub(super) struct Forge<'a> {
    pub(super) rng: &'a mut fastrand::Rng,
    pub(super) lore: &'a mut Lore,
    /// Whether the message only asks: then it may name a customer's workflow.
    reads: bool,
    /// Whether it is a worker's: then a run is always named.
    is_frame: bool,
    /// How many of 100 fields are odd.
    odd: u8,
}

impl<'a> Forge<'a> {
    pub(super) fn new(rng: &'a mut fastrand::Rng, lore: &'a mut Lore) -> Self {
        let odd = match rng.u8(0..20) {
            0..10 => 0,
            10..17 => 8,
            _ => 50,
        };
        Self { rng, lore, reads: false, is_frame: false, odd }
    }

    /// Draws messages without anything odd.
    pub(super) fn good(rng: &'a mut fastrand::Rng, lore: &'a mut Lore) -> Self {
        Self { odd: 0, ..Self::new(rng, lore) }
    }

    /// A request.
    pub(super) fn request(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        self.reads = !changes(descriptor);
        self.message(descriptor, 0)
    }

    /// A frame of a worker, of a few items.
    pub(super) fn frame(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        self.is_frame = true;
        self.message(descriptor, 0)
    }

    /// A frame whose first item is of that kind.
    pub(super) fn frame_of(
        &mut self,
        descriptor: &MessageDescriptor,
        kind: &str,
    ) -> DynamicMessage {
        let mut frame = DynamicMessage::new(descriptor.clone());
        let items = descriptor.get_field_by_name("items").expect("frames have items");
        let Kind::Message(item) = items.kind() else { panic!("items are messages") };
        let field = item.get_field_by_name(kind).expect("the kind is one of them");
        let mut first = DynamicMessage::new(item);
        first.set_field(&field, self.value(&field, 2));
        frame.set_field(&items, Value::List(vec![Value::Message(first)]));
        frame
    }

    /// The message as bytes, now and then damaged.
    pub(super) fn bytes(&mut self, message: &DynamicMessage) -> Bytes {
        let mut bytes = message.encode_to_vec();
        // An odd message may have a map of many, whose order on the wire is not the seed's.
        if self.odd == 0 && self.rng.u8(0..20) == 0 {
            crate::mutate::mutate(self.rng, &mut bytes, &[]);
        }
        bytes.into()
    }

    fn chance(&mut self, of_100: u8) -> bool {
        self.rng.u8(0..100) < of_100
    }

    fn is_odd(&mut self) -> bool {
        let odd = self.odd;
        self.chance(odd)
    }

    fn message(&mut self, descriptor: &MessageDescriptor, level: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        if level > LEVELS {
            return message;
        }
        if descriptor.name() == "ActivityToken"
            && let Some(token) = self.attempt()
        {
            return token;
        }
        if descriptor.name() == "Failure" && self.is_odd() {
            return self.failures(descriptor);
        }
        for oneof in descriptor.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            if !self.is_odd() {
                let field = self.choose(&oneof);
                let value = self.value(&field, level + 1);
                message.set_field(&field, value);
            }
        }
        let is_plain = |field: &FieldDescriptor| {
            field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic())
        };
        for field in descriptor.fields().filter(is_plain) {
            let absent = if self.is_odd() { 50 } else { absent(&field, level) };
            if !self.chance(absent) {
                let value = self.value(&field, level + 1);
                message.set_field(&field, value);
            }
        }
        self.name_a_task(&mut message);
        if descriptor.name() == "Hello"
            && let Some(queue) = message.get_field_by_name_mut("task_queue")
            && queue.as_str() == Some("programs")
        {
            // A worker of that queue may do as it likes with the customers' runs.
            *queue = Value::String(QUEUE.to_owned());
        }
        message
    }

    fn choose(&mut self, oneof: &OneofDescriptor) -> FieldDescriptor {
        loop {
            let fields = oneof.fields();
            let place = self.rng.usize(0..fields.len());
            let field = oneof.fields().nth(place).expect("it is one of them");
            // A second greeting or a good-bye ends a session, which is to go on for a while.
            let is_rare = ["hello", "draining"].contains(&field.name());
            if !is_rare || self.rng.u8(0..30) == 0 {
                return field;
            }
        }
    }

    /// A long chain of causes.
    fn failures(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        let mut failure = DynamicMessage::new(descriptor.clone());
        for _ in 0..self.rng.usize(0..CAUSES) {
            let mut outer = DynamicMessage::new(descriptor.clone());
            outer.set_field_by_name("cause", Value::Message(failure));
            outer.set_field_by_name("message", Value::String(self.odd_text()));
            failure = outer;
        }
        failure
    }

    /// What names both a task and its run mostly names two that belong together. A run of a customer
    /// never comes with a task that could be its own.
    fn name_a_task(&mut self, message: &mut DynamicMessage) {
        let (Some(task), Some(run)) = (
            message.descriptor().get_field_by_name("task_id"),
            message.descriptor().get_field_by_name("run_id"),
        ) else {
            return;
        };
        if self.lore.tasks.is_empty() || self.chance(10) {
            return; // any run, and a task that there never was
        }
        let (mut task_id, run_id) = self.pick(|lore| &lore.tasks);
        if self.chance(10) {
            let counter = task_id.get_field_by_name("counter").and_then(|value| value.as_u64());
            let counter = counter.unwrap_or(0).wrapping_add(self.rng.u64(0..3)).wrapping_sub(1);
            task_id.set_field_by_name("counter", Value::U64(counter));
        }
        message.set_field(&task, Value::Message(task_id));
        message.set_field(&run, Value::Bytes(run_id));
    }

    /// The token of an attempt that villains have seen, or nearly.
    fn attempt(&mut self) -> Option<DynamicMessage> {
        if self.lore.attempts.is_empty() || self.chance(10) {
            return None; // any run, and an attempt that there never was
        }
        let mut token = self.pick(|lore| &lore.attempts);
        if self.chance(10) {
            let field = ["number", "attempt"][self.rng.usize(0..2)];
            token.set_field_by_name(field, Value::U32(self.odd_number() as u32));
        }
        Some(token)
    }

    fn pick<T: Clone>(&mut self, from: impl Fn(&Lore) -> &Vec<T>) -> T {
        let all = from(self.lore);
        all[self.rng.usize(0..all.len())].clone()
    }

    fn value(&mut self, field: &FieldDescriptor, level: usize) -> Value {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { panic!("a map has entries") };
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            let most = if self.odd == 0 { 1 } else { 50 };
            let count = self.count().min(most);
            let entries = (0..count).map(|_| {
                let key = match self.single(&key, level) {
                    Value::String(key) => MapKey::String(key),
                    other => panic!("no map has keys like {other:?}"),
                };
                (key, self.single(&value, level))
            });
            return Value::Map(entries.collect());
        }
        if field.is_list() {
            let count = self.count();
            return Value::List((0..count).map(|_| self.single(field, level)).collect());
        }
        self.single(field, level)
    }

    fn count(&mut self) -> usize {
        match self.rng.u8(0..40) {
            0 if self.odd > 0 => 200,
            0..10 => 0,
            10..30 => 1,
            _ => self.rng.usize(2..5),
        }
    }

    fn single(&mut self, field: &FieldDescriptor, level: usize) -> Value {
        let odd = self.is_odd();
        let name = field.name();
        let number =
            |forge: &mut Self| if odd { forge.odd_number() } else { forge.good_number(name) };
        match field.kind() {
            Kind::Message(inner) => Value::Message(self.message(&inner, level)),
            Kind::String if odd => Value::String(self.odd_text()),
            Kind::String => Value::String(self.good_text(name).unwrap_or_default()),
            Kind::Bytes if odd => Value::Bytes(self.odd_bytes(name)),
            Kind::Bytes => Value::Bytes(self.good_bytes(name).unwrap_or_default()),
            Kind::Enum(known) if !odd => {
                let place = self.rng.usize(0..known.values().len());
                Value::EnumNumber(known.values().nth(place).map_or(0, |value| value.number()))
            }
            Kind::Enum(_) => Value::EnumNumber(self.odd_number() as i32),
            Kind::Bool => Value::Bool(self.rng.u8(0..4) == 0),
            Kind::Double => Value::F64(if odd { self.odd_double() } else { 2.0 }),
            Kind::Float => Value::F32(if odd { self.odd_double() as f32 } else { 2.0 }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(self) as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(self)),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number(self) as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(number(self) as u64),
        }
    }

    fn good_text(&mut self, name: &str) -> Option<String> {
        let one_of =
            |forge: &mut Self, texts: &[&str]| texts[forge.rng.usize(0..texts.len())].to_owned();
        Some(match name {
            "workflow_id" if self.reads && !self.lore.orders.is_empty() && self.rng.bool() => {
                self.pick(|lore| &lore.orders)
            }
            "workflow_id" => format!("villain-{}", self.rng.u8(0..40)),
            "namespace" => one_of(self, &["", "default"]),
            // Now and then a customer's worker gets work of which it understands nothing.
            "task_queue" if self.rng.u8(0..50) == 0 && !self.reads => "programs".to_owned(),
            "task_queue" => QUEUE.to_owned(),
            "workflow_type" | "workflow_types" => one_of(self, &["mischief", "interpret"]),
            "activity_type" | "activity_types" => one_of(self, &["prank", "work"]),
            "signal_name" | "kind" | "non_retryable_kinds" => one_of(self, &["news", "Prank"]),
            "content_type" => "json".to_owned(),
            "identity" | "reason" | "version" | "build_id" | "name" | "summary" | "file"
            | "message" | "stack" | "key" => one_of(self, &["", "Zoë", "src/main.rs", "0.1.0"]),
            _ => return None,
        })
    }

    fn good_bytes(&mut self, name: &str) -> Option<Bytes> {
        let lore = &self.lore;
        Some(match name {
            // Mostly the run of another workflow, which is to be refused.
            "run_id" if !lore.run_ids.is_empty() && (self.is_frame || self.rng.u8(0..4) == 0) => {
                self.pick(|lore| &lore.run_ids)
            }
            "run_id" if self.is_frame => Bytes::from_static(&[7; 16]),
            "request_id" if !lore.request_ids.is_empty() && self.rng.u8(0..10) == 0 => {
                self.pick(|lore| &lore.request_ids)
            }
            "request_id" => {
                let id = Bytes::copy_from_slice(&self.rng.u128(..).to_le_bytes());
                keep(&mut self.lore.request_ids, id.clone(), self.rng);
                id
            }
            "page_token" | "position" if !lore.places.is_empty() && self.rng.u8(0..4) == 0 => {
                self.pick(|lore| &lore.places)
            }
            "run_id" | "page_token" | "position" => Bytes::new(),
            "data" | "value" => Bytes::from_static(b"7"),
            _ => return None,
        })
    }

    fn good_number(&mut self, name: &str) -> i64 {
        match name {
            "protocol" => PROTOCOL.into(),
            "part" | "parts" | "slot_from" => 0,
            "priority" => self.rng.i64(-3..4),
            "workflow" | "activity" | "page_size" => self.rng.i64(0..50),
            "max_bytes" => [0, 1, 1_000, 1 << 20][self.rng.usize(0..4)],
            "slot_to" => 1_024,
            name if name.ends_with("_us") => {
                [0, 0, 1_000, 500_000, 30_000_000, 3_600_000_000][self.rng.usize(0..6)]
            }
            _ => self.rng.i64(0..40),
        }
    }

    fn odd_number(&mut self) -> i64 {
        match self.rng.u8(0..12) {
            0 => 0,
            1 => -1,
            2 => i64::MIN,
            3 => i64::MAX,
            4 => i64::from(i32::MIN),
            5 => i64::from(i32::MAX),
            6 => i64::from(u32::MAX),
            7 => MAX_DURATION_US,
            8 => MAX_DURATION_US + 1,
            9 => 1 << self.rng.u8(0..63),
            _ => self.rng.i64(..),
        }
    }

    fn odd_double(&mut self) -> f64 {
        let all = [
            0.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MAX,
            f64::MIN_POSITIVE,
            1e-300,
        ];
        all[self.rng.usize(0..all.len())]
    }

    fn odd_text(&mut self) -> String {
        match self.rng.u8(0..10) {
            0 | 1 => String::new(),
            2 => "\0".to_owned(),
            3 => "villain\0-1".to_owned(),
            4 => "x".repeat(1_000),
            5 => "é".repeat(501),
            6 => "'; DROP TABLE run; --".to_owned(),
            7 => "\u{202e}\u{feff}\u{1b}[2J\r\n".to_owned(),
            8 if self.rng.u8(0..20) == 0 => "x".repeat(100_000),
            _ => format!("villain-{}", self.rng.u8(0..40)),
        }
    }

    fn odd_bytes(&mut self, name: &str) -> Bytes {
        let len = match self.rng.u8(0..12) {
            0 | 1 => 0,
            2 => 1,
            3 => 15,
            4..8 => 16,
            8 => 17,
            9 if name == "data" && self.rng.u8(0..40) == 0 => {
                [(2 << 20) - 100, (2 << 20) + 1, 5 << 20][self.rng.usize(0..3)]
            }
            _ => self.rng.usize(0..300),
        };
        let fill = self.rng.u8(..);
        let mut bytes = vec![fill; len];
        if self.rng.bool() {
            bytes.iter_mut().take(300).for_each(|byte| *byte = self.rng.u8(..));
        }
        bytes.into()
    }
}

/// How many of 100 messages lack a field that is not odd in itself.
fn absent(field: &FieldDescriptor, level: usize) -> u8 {
    let is_message = matches!(field.kind(), Kind::Message(_));
    match field.name() {
        // Without these there is no request.
        "start" | "items" | "workflow_id" | "workflow_type" | "request_id" | "task_id"
        | "token" | "task_queue" | "activity_type" | "protocol" | "signal_name" => 0,
        // With these it is another one.
        "refused" | "parts" | "cause" => 90,
        _ if is_message && field.cardinality() != Cardinality::Repeated => 30 + 10 * level as u8,
        _ => 40,
    }
}

/// Whether a request changes anything: then it has an id of its own.
fn changes(descriptor: &MessageDescriptor) -> bool {
    descriptor.fields().any(|field| {
        field.name() == "request_id"
            || matches!(field.kind(), Kind::Message(inner) if inner.name().ends_with("Request") && changes(&inner))
    })
}

/// Texts and bytes within a message for which nothing good is known.
pub(super) fn strangers(descriptor: &MessageDescriptor) -> BTreeSet<String> {
    fn of(
        descriptor: &MessageDescriptor,
        seen: &mut BTreeSet<String>,
        found: &mut BTreeSet<String>,
    ) {
        if !seen.insert(descriptor.full_name().to_owned()) {
            return;
        }
        let (mut rng, mut lore) = (fastrand::Rng::with_seed(0), Lore::default());
        let mut forge = Forge::new(&mut rng, &mut lore);
        for field in descriptor.fields() {
            let known = match field.kind() {
                Kind::Message(inner) => {
                    of(&inner, seen, found);
                    true
                }
                Kind::String => forge.good_text(field.name()).is_some(),
                Kind::Bytes => forge.good_bytes(field.name()).is_some(),
                _ => true,
            };
            if !known {
                found.insert(field.full_name().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    of(descriptor, &mut BTreeSet::new(), &mut found);
    found
}
