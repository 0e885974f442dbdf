//! One of those who mean no good: calls of all methods, and sessions of a worker that is none.

use std::{
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::mpsc,
    task::spawn_local,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming, codegen::http::uri::PathAndQuery};

use super::{PAUSE, World, forge::Forge, is_session, path};
use crate::server::{Caller, is_refusal};

/// A call that does not wait is answered within this time: by the virtual clock, and by the time
/// of the processor, which counts what others ask for meanwhile as well.
const PROMPT: Duration = Duration::from_secs(1);
/// A call that may wait does so for no longer.
const PATIENT: Duration = Duration::from_mins(1);
/// Calls that may wait.
const WAITING: [&str; 3] = ["ExecuteWorkflow", "GetWorkflowHistory", "WaitWorkflowResult"];
/// Most frames of a session.
const FRAMES: usize = 80;
/// How much of a request is shown.
const SHOWN: usize = 4_000;

/// Calls until no call is left.
pub(super) async fn rage(world: Rc<World>, mut rng: fastrand::Rng) {
    let caller = world.server.caller();
    while let Some(number) = world.ticket() {
        sleep(PAUSE.mul_f64(rng.f64())).await;
        let place = rng.usize(0..world.methods.len());
        let method = world.methods[place].clone();
        if is_session(&method) {
            session(&world, &caller, &method, number, &mut rng).await;
        } else if WAITING.contains(&method.name()) {
            // Others go on meanwhile, and some callers hang up before they are answered.
            let (world, caller, mut rng) = (Rc::clone(&world), caller.clone(), rng.fork());
            let hangs_up = Duration::from_millis(rng.u64(0..120_000));
            spawn_local(async move {
                let call = call(&world, &caller, &method, number, &mut rng);
                drop(timeout(hangs_up, call).await);
            });
        } else {
            call(&world, &caller, &method, number, &mut rng).await;
        }
    }
}

async fn call(
    world: &World,
    caller: &Caller,
    method: &MethodDescriptor,
    number: u64,
    rng: &mut fastrand::Rng,
) {
    let input = method.input();
    let bytes = {
        let mut lore = world.lore.borrow_mut();
        let mut forge = Forge::new(rng, &mut lore);
        let message = forge.request(&input);
        forge.bytes(&message)
    };
    let name = path(method);
    let wrong = |what: &str| {
        world.wrong(format_args!("rpc={number} {name} {what}: {}", shown(&input, &bytes)));
    };
    let within = if WAITING.contains(&method.name()) { PATIENT } else { PROMPT };
    let began = processor_time();
    let answer = timeout(within, caller.call(&way(&name), bytes.clone())).await;
    let Ok(answer) = answer else {
        return wrong(&format!("was not answered within {} s", within.as_secs()));
    };
    let took = processor_time().saturating_sub(began);
    if within == PROMPT {
        if took > PROMPT {
            wrong(&format!("took {} ms of the processor", took.as_millis()));
        }
        let mut summary = world.summary.borrow_mut();
        summary.slowest = summary.slowest.max(took);
    }
    match answer {
        Ok(answer) => {
            take_down(world, &name, Code::Ok);
            learn(world, method, answer, rng);
        }
        Err(status) => {
            take_down(world, &name, status.code());
            if !is_refusal(&name, status.code()) {
                wrong(&format!("was answered with {:?} {:?}", status.code(), status.message()));
            }
        }
    }
}

/// A worker that says anything, and takes tasks meanwhile.
async fn session(
    world: &World,
    caller: &Caller,
    method: &MethodDescriptor,
    number: u64,
    rng: &mut fastrand::Rng,
) {
    let name = path(method);
    let input = method.input();
    let mut said = Vec::new();
    let mut frame = |rng: &mut fastrand::Rng, draw: &dyn Fn(&mut Forge<'_>) -> DynamicMessage| {
        let mut lore = world.lore.borrow_mut();
        let mut forge = Forge::new(rng, &mut lore);
        let message = draw(&mut forge);
        for kind in kinds(&message) {
            world.reached(format!("item {kind}"));
        }
        let bytes = forge.bytes(&message);
        said.push(bytes.clone());
        bytes
    };
    let (frames, stream) = mpsc::unbounded_channel();
    let first = match rng.u8(0..20) {
        0 => frame(rng, &|forge| forge.frame(&input)),
        _ => frame(rng, &|forge| forge.frame_of(&input, "hello")),
    };
    drop(frames.send(first));
    let way = way(&name);
    let opening = caller.stream(&way, UnboundedReceiverStream::new(stream));
    let mut wrong = None;
    match timeout(PROMPT, opening).await {
        Err(_) => wrong = Some("was not opened within 1 s".to_owned()),
        Ok(Err(status)) => wrong = ended(world, &name, &status),
        Ok(Ok(mut answers)) => {
            drop(frames.send(frame(rng, &|forge| forge.frame_of(&input, "credits"))));
            for _ in 0..rng.usize(0..FRAMES) {
                match listen(world, method, &mut answers, rng).await {
                    Heard::Silence => {}
                    Heard::End => {
                        take_down(world, &name, Code::Ok);
                        break;
                    }
                    Heard::Broken(status) => {
                        wrong = ended(world, &name, &status);
                        break;
                    }
                }
                if world.ticket().is_none() {
                    break;
                }
                drop(frames.send(frame(rng, &|forge| forge.frame(&input))));
            }
        }
    }
    if let Some(wrong) = wrong {
        let said: Vec<_> = said.iter().map(|bytes| shown(&input, bytes)).collect();
        world.wrong(format_args!("rpc={number} {name} {wrong}: {}", said.join("; ")));
    }
}

/// What came of a stream that ended with a status.
fn ended(world: &World, name: &str, status: &Status) -> Option<String> {
    take_down(world, name, status.code());
    let bad = !is_refusal(name, status.code());
    bad.then(|| format!("ended with {:?} {:?}", status.code(), status.message()))
}

enum Heard {
    Silence,
    End,
    Broken(Status),
}

/// Takes what the server says, for a while.
async fn listen(
    world: &World,
    method: &MethodDescriptor,
    answers: &mut Streaming<Bytes>,
    rng: &mut fastrand::Rng,
) -> Heard {
    let until = tokio::time::Instant::now() + PAUSE.mul_f64(rng.f64());
    loop {
        match tokio::time::timeout_at(until, answers.message()).await {
            Err(_) => return Heard::Silence,
            Ok(Ok(Some(message))) => learn(world, method, message, rng),
            Ok(Ok(None)) => return Heard::End,
            Ok(Err(status)) => return Heard::Broken(status),
        }
    }
}

fn learn(world: &World, method: &MethodDescriptor, answer: Bytes, rng: &mut fastrand::Rng) {
    match DynamicMessage::decode(method.output(), answer) {
        Ok(answer) => world.lore.borrow_mut().learn(&answer, rng),
        Err(error) => world.wrong(format_args!("{} answers {error}", method.full_name())),
    }
}

/// Counts an answer, and makes it part of the trace.
fn take_down(world: &World, name: &str, code: Code) {
    world.reached(format!("{name} {code:?}"));
    let mut summary = world.summary.borrow_mut();
    let mut hasher = DefaultHasher::new();
    (summary.trace, name, code as i32).hash(&mut hasher);
    summary.trace = hasher.finish();
}

/// The kinds of the items of a frame.
fn kinds(frame: &DynamicMessage) -> Vec<String> {
    let Some(items) = frame.get_field_by_name("items") else { return Vec::new() };
    let items = items.as_list().unwrap_or_default().iter().filter_map(Value::as_message);
    let kinds = items.filter_map(|item| Some(item.fields().next()?.0.name().to_owned()));
    kinds.collect()
}

fn way(path: &str) -> PathAndQuery {
    PathAndQuery::try_from(path).expect("the name of a method is a path")
}

/// A message as it is printed: its fields, or its bytes if they are none.
fn shown(descriptor: &MessageDescriptor, bytes: &Bytes) -> String {
    let mut text = String::new();
    match DynamicMessage::decode(descriptor.clone(), bytes.clone()) {
        Ok(message) => write_fields(&mut text, &message),
        Err(_) => write!(text, "{bytes:x}"),
    }
    .expect("a string takes all that is written");
    text.truncate(text.floor_char_boundary(SHOWN));
    text
}

fn write_fields(text: &mut String, message: &DynamicMessage) -> fmt::Result {
    write!(text, "{{")?;
    for (field, value) in message.fields() {
        if text.len() > SHOWN {
            break;
        }
        write!(text, " {}:", field.name())?;
        write_value(text, value)?;
    }
    write!(text, " }}")
}

fn write_value(text: &mut String, value: &Value) -> fmt::Result {
    match value {
        Value::Message(message) => write_fields(text, message),
        Value::List(list) => list.iter().take(20).try_for_each(|value| write_value(text, value)),
        Value::Map(map) => map.iter().take(20).try_for_each(|(key, value)| {
            write!(text, "{key:?}=")?;
            write_value(text, value)
        }),
        Value::Bytes(bytes) => write!(text, "{:?}", bytes.slice(..bytes.len().min(100))),
        Value::String(value) => write!(text, "{:?}", &value[..value.floor_char_boundary(100)]),
        other => write!(text, "{other:?}"),
    }
}

/// The time that this thread's processor has spent on it.
fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}
