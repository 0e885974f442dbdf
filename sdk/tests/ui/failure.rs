use onward::prelude::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
#[failure(terminal)]
pub enum PaymentError {
    #[error("declined")]
    #[failure(terminale)]
    Declined,
    #[error("slow down")]
    #[failure(retry_after = afer)]
    RateLimited { after: Duration },
    #[error("gone")]
    #[failure(terminal, retry_after = 0)]
    Gone(Duration),
    #[error("field")]
    Field {
        #[failure(retry_after)]
        after: Duration,
    },
    #[error("odd")]
    #[failure(retry_after = "1s")]
    Odd,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub enum DelayError {
    #[error("slow down")]
    #[failure(retry_after = after)]
    RateLimited { after: u64 },
}

#[derive(Failure)]
union Bits {
    a: u32,
}

fn main() {}
