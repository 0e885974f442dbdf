use onward::prelude::*;

#[derive(Debug, thiserror::Error, Failure)]
#[error("declined")]
pub struct Declined;

fn main() {}
