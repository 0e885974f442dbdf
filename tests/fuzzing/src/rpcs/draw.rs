//! Good messages, for a corpus to begin with.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::MessageDescriptor;

use super::{
    descriptors,
    forge::{Forge, Lore},
    methods, path,
};

/// So many requests for the method of that path.
pub(crate) fn requests(of: &str, count: u64) -> Vec<Vec<u8>> {
    let pool = descriptors();
    let methods = methods(&pool);
    let method = methods.iter().find(|method| path(method) == of);
    let input = method.expect("the path is that of a method").input();
    drawn(count, |forge| forge.request(&input).encode_to_vec())
}

/// So many frames of a worker.
pub(crate) fn frames(count: u64) -> Vec<Bytes> {
    let frame = named("onward.v1.SessionRequest");
    drawn(count, |forge| forge.frame(&frame).encode_to_vec().into())
}

/// So many commands.
pub(crate) fn commands(count: u64) -> Vec<Bytes> {
    let command = named("onward.v1.Command");
    drawn(count, |forge| forge.frame(&command).encode_to_vec().into())
}

fn named(name: &str) -> MessageDescriptor {
    descriptors().get_message_by_name(name).expect("the descriptors hold every message")
}

fn drawn<T>(count: u64, mut draw: impl FnMut(&mut Forge<'_>) -> T) -> Vec<T> {
    let mut lore = Lore::default();
    (0..count)
        .map(|seed| draw(&mut Forge::good(&mut fastrand::Rng::with_seed(seed), &mut lore)))
        .collect()
}
