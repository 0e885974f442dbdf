//! What goes to the server: items encoded once, many to a frame.
//!
//! An item is encoded where it arises, kept as bytes until it is acked, and sent again as the same
//! bytes. A frame takes everything that is queued when the connection has room for it, so the
//! busier a worker is, the fewer frames it needs.

use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::Stream;
use onward_proto::v1;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::limits::leave_out;

/// One encoded [`v1::WorkerItem`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Item(Bytes);

impl Item {
    pub(crate) fn new(kind: v1::worker_item::Kind) -> Self {
        Self(v1::WorkerItem { kind: Some(kind) }.encode_to_vec().into())
    }

    /// Its share of a frame.
    pub(crate) fn framed_len(&self) -> usize {
        1 + prost::length_delimiter_len(self.0.len()) + self.0.len()
    }

    /// Whether a frame can hold it; said in the log if not.
    pub(crate) fn fits(&self, max_frame: usize) -> bool {
        let bytes = self.framed_len();
        if bytes > max_frame {
            tracing::error!(bytes, max_frame, "what is larger than a message is not sent");
        }
        bytes <= max_frame
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match v1::WorkerItem::decode(self.0.clone()) {
            Ok(item) => item.fmt(f),
            Err(error) => error.fmt(f),
        }
    }
}

/// A failure that fits into a frame. The server cuts it down to what it keeps.
pub(crate) fn bounded(failure: v1::Failure, max_frame: usize) -> v1::Failure {
    // What the rest of the item takes, generously.
    const ITEM: usize = 1024;
    failure.fit(max_frame.saturating_sub(ITEM) as u64)
}

/// The items of one [`v1::SessionRequest`].
#[derive(Debug, Default)]
pub(crate) struct Frame(Vec<Item>);

/// The sending side of one stream. Dropping it ends the stream after what is queued.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    max_frame: usize,
    closed: bool,
    waker: Option<Waker>,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Nothing can panic while the lock is held; a poisoned queue is as good as any.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// An outbox, and the frames that leave it.
    pub(crate) fn new(max_frame: usize) -> (Self, Frames) {
        let queue = Arc::new(Mutex::new(Queue {
            items: VecDeque::new(),
            max_frame,
            closed: false,
            waker: None,
        }));
        (Self { queue: Arc::clone(&queue) }, Frames { queue })
    }

    /// Queues `items`, which are taken out of the vector.
    ///
    /// One that is larger than a frame is left out: it would end the stream, and every next one.
    pub(crate) fn send(&self, items: &mut Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        let max_frame = queue.max_frame;
        queue.items.extend(items.drain(..).filter(|item| item.fits(max_frame)));
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Sets the size that no frame may exceed.
    pub(crate) fn set_max_frame(&self, bytes: usize) {
        lock(&self.queue).max_frame = bytes;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The frames of one stream.
#[derive(Debug)]
pub(crate) struct Frames {
    queue: Arc<Mutex<Queue>>,
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut queue = lock(&self.queue);
        let Some(first) = queue.items.pop_front() else {
            if queue.closed {
                return Poll::Ready(None);
            }
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let mut bytes = first.framed_len();
        let mut items = vec![first];
        while let Some(next) = queue.items.front() {
            bytes += next.framed_len();
            if bytes > queue.max_frame {
                break;
            }
            items.extend(queue.items.pop_front());
        }
        Poll::Ready(Some(Frame(items)))
    }
}

/// Writes frames of encoded items, reads [`v1::SessionResponse`]s.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SessionCodec;

impl Codec for SessionCodec {
    type Encode = Frame;
    type Decode = v1::SessionResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

/// The tag of `SessionRequest.items`: field 1, length-delimited.
const ITEMS_TAG: u8 = 0x0a;

impl Encoder for SessionCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(frame.0.iter().map(Item::framed_len).sum());
        for Item(item) in frame.0 {
            dst.put_u8(ITEMS_TAG);
            prost::encode_length_delimiter(item.len(), dst)
                .map_err(|error| Status::internal(error.to_string()))?;
            dst.put(item);
        }
        Ok(())
    }
}

impl Decoder for SessionCodec {
    type Item = v1::SessionResponse;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let len = src.remaining();
        v1::SessionResponse::decode(src.copy_to_bytes(len))
            .map(Some)
            .map_err(|error| Status::internal(format!("a frame does not decode: {error}")))
    }
}

/// A command that fits into no frame, even without its payloads.
#[derive(Debug)]
pub(crate) struct TooLarge {
    pub(crate) command: v1::Command,
    pub(crate) bytes: usize,
}

/// Splits a completion that is larger than a frame into parts of whole commands. A command that
/// fits into none goes without what makes it so large, to be recorded as refused.
///
/// # Errors
/// The command that fits into no frame.
pub(crate) fn completion_items(
    mut completed: v1::TaskCompleted,
    max_frame: usize,
) -> Result<Vec<Item>, Box<TooLarge>> {
    // What a part costs beside its commands, generously.
    const HEADER: usize = 256;
    let room = max_frame.saturating_sub(HEADER + 5 * completed.sdk_flags.len()).max(1);
    if completed.encoded_len() <= room {
        return Ok(vec![Item::new(v1::worker_item::Kind::TaskCompleted(completed))]);
    }
    let mut parts: Vec<Vec<v1::Command>> = vec![Vec::new()];
    let mut bytes = 0;
    let framed_len = |command: &v1::Command| {
        let len = command.encoded_len();
        1 + prost::length_delimiter_len(len) + len
    };
    for mut command in mem::take(&mut completed.commands) {
        if framed_len(&command) > room {
            leave_out(&mut command, max_frame);
        }
        let framed = framed_len(&command);
        if framed > room {
            return Err(Box::new(TooLarge { bytes: command.encoded_len(), command }));
        }
        if bytes + framed > room {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += framed;
        if let Some(part) = parts.last_mut() {
            part.push(command);
        }
    }
    let count = parts.len() as u32;
    Ok(parts
        .into_iter()
        .zip(0..)
        .map(|(commands, part)| {
            let part = v1::TaskCompleted { commands, part, parts: count, ..completed.clone() };
            Item::new(v1::worker_item::Kind::TaskCompleted(part))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::task::Waker;

    use futures_util::StreamExt;

    use super::*;

    fn evicted(run: u8) -> v1::worker_item::Kind {
        v1::worker_item::Kind::Evicted(v1::Evicted { run_id: vec![run; 16].into() })
    }

    fn command(bytes: usize) -> v1::Command {
        let arguments = vec![v1::Payload { data: vec![7; bytes].into(), ..Default::default() }];
        v1::Command {
            kind: Some(v1::command::Kind::ScheduleActivity(v1::ScheduleActivity {
                arguments,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn decode(item: &Item) -> v1::worker_item::Kind {
        v1::WorkerItem::decode(item.0.clone()).unwrap().kind.unwrap()
    }

    #[test]
    fn a_frame_takes_all_that_is_queued_up_to_its_size() {
        let (outbox, mut frames) = Outbox::new(3 * Item::new(evicted(0)).framed_len());
        let mut items = (0..5).map(|run| Item::new(evicted(run))).collect();
        outbox.send(&mut items);
        drop(outbox);

        let mut cx = Context::from_waker(Waker::noop());
        let mut sizes = Vec::new();
        while let Poll::Ready(Some(frame)) = frames.poll_next_unpin(&mut cx) {
            sizes.push(frame.0.len());
        }
        assert_eq!(sizes, [3, 2]);
        assert!(matches!(frames.poll_next_unpin(&mut cx), Poll::Ready(None)));
    }

    #[test]
    fn what_is_larger_than_a_frame_is_left_out() {
        let (large, small) = (Item(vec![7; 200].into()), Item(vec![7; 50].into()));
        let (outbox, mut frames) = Outbox::new(100);
        outbox.send(&mut vec![large, small.clone()]);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(frame)) = frames.poll_next_unpin(&mut cx) else { panic!() };
        assert_eq!(frame.0, [small]);
    }

    #[test]
    fn a_large_completion_comes_in_parts_that_hold_all_commands_in_order() {
        let commands: Vec<_> = (0..10).map(|n| command(20_000 + n)).collect();
        let completed = v1::TaskCompleted {
            commands: commands.clone(),
            more: true,
            sdk_flags: vec![3],
            ..Default::default()
        };
        let items = completion_items(completed, 64 * 1024).unwrap();
        assert!(items.len() > 1);
        assert!(items.iter().all(|item| item.framed_len() <= 64 * 1024));
        let mut joined = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let v1::worker_item::Kind::TaskCompleted(part) = decode(item) else { panic!() };
            assert_eq!((part.part as usize, part.parts as usize), (n, items.len()));
            assert!(part.more);
            assert_eq!(part.sdk_flags, [3]);
            joined.extend(part.commands);
        }
        assert_eq!(joined, commands);
    }

    #[test]
    fn a_small_completion_is_one_item() {
        let small = v1::TaskCompleted { commands: vec![command(10)], ..Default::default() };
        assert_eq!(completion_items(small, 64 * 1024).unwrap().len(), 1);
    }

    #[test]
    fn a_command_that_fits_into_no_frame_goes_without_its_payloads() {
        let commands = vec![command(10), command(70_000), command(20)];
        let completed = v1::TaskCompleted { commands: commands.clone(), ..Default::default() };
        let items = completion_items(completed, 64 * 1024).unwrap();
        let [item] = &items[..] else { panic!("{} items", items.len()) };
        let v1::worker_item::Kind::TaskCompleted(sent) = decode(item) else { panic!() };
        assert_eq!((&sent.commands[0], &sent.commands[2]), (&commands[0], &commands[2]));
        assert_eq!(sent.commands[1].refused.as_ref().unwrap().limit, 64 * 1024);
    }

    #[test]
    fn a_command_that_is_too_large_even_so_is_named() {
        let mut huge = command(10);
        if let Some(v1::command::Kind::ScheduleActivity(schedule)) = &mut huge.kind {
            schedule.activity_type = "a".repeat(70_000);
        }
        let completed = v1::TaskCompleted { commands: vec![huge], ..Default::default() };
        let too_large = completion_items(completed, 64 * 1024).unwrap_err();
        assert!(too_large.bytes > 70_000);
        assert!(too_large.command.kind.is_some());
    }
}
