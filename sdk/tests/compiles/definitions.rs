#![deny(warnings, clippy::pedantic)]

use onward::prelude::*;
use serde::{Deserialize, Serialize};

/// An id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderId(String);

/// An activity may be called `C`, as the macro's own parameter is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct C;

/// What the activities need.
#[derive(Clone, Deps)]
pub struct App {
    /// A pool.
    pub pool: u32,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
pub enum PaymentError {
    #[error("card declined: {reason}")]
    #[failure(terminal)]
    Declined { reason: String },
    #[error(transparent)]
    Other(#[from] onward::Error),
}

/// A failure may be generic.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
#[error(transparent)]
#[serde(bound = "E: Failure")]
pub struct Wrapped<E: Failure + std::error::Error>(pub E);

/// Charges the card.
#[activity(
    timeout = "30s",
    deadline = "1h 30m",
    queue_timeout = "5m",
    heartbeat = "10s",
    queue = "payments",
    priority = -3,
    retry(
        max_attempts = 5,
        initial = "200ms",
        max_interval = "10s",
        backoff = 2,
        never_on("PaymentError::Declined", "Error"),
    ),
)]
pub async fn charge(
    ctx: &ActivityCtx<App>,
    order: &OrderId,
    amount: u64,
) -> Result<u64, PaymentError> {
    if order.0.is_empty() {
        return Err(PaymentError::Declined { reason: "no order".into() });
    }
    Ok(amount + u64::from(ctx.pool))
}

type Shop = ActivityCtx<App>;
type Done = onward::Result<()>;

// Aliases, patterns, slices and unnamed parameters.
#[activity(name = "aliased-activity", marker = Aliased)]
async fn aliased(
    ctx: &Shop,
    (low, high): (u8, u8),
    _: Option<String>,
    list: &[C],
    ctx_: C,
) -> Done {
    let _ = (&ctx.pool, low, high, list, ctx_);
    Ok(())
}

#[activity]
async fn r#type(_: &ActivityCtx) -> onward::Result<()> {
    Ok(())
}

#[cfg(any())]
#[activity]
async fn left_out(_: &ActivityCtx) -> onward::Result<Nowhere> {}

#[activity]
#[cfg(any())]
async fn left_out_too(_: &ActivityCtx) -> onward::Result<Nowhere> {}

#[workflow]
async fn count(_: &Ctx, mut upto: u32) -> onward::Result<u32> {
    upto += 1;
    Ok(onward::audited!(upto))
}

mod vendored {
    pub(crate) use onward as sdk;

    #[sdk::activity(crate = crate::definitions::vendored::sdk)]
    pub async fn far(_: &sdk::ActivityCtx) -> sdk::Result<()> {
        Ok(())
    }
}

/// Markers may be called as the macro's own parameters are.
mod letters {
    use onward::prelude::*;

    #[activity(marker = C)]
    pub async fn first(_: &ActivityCtx) -> onward::Result<()> {
        Ok(())
    }

    #[activity(marker = D)]
    pub async fn second(_: &ActivityCtx) -> onward::Result<()> {
        Ok(())
    }
}

macro_rules! setter {
    ($name:ident, $context:ty, $value:ty, $result:ty, $body:expr) => {
        #[activity]
        async fn $name(_: $context, value: $value) -> $result {
            let _ = value;
            $body
        }
    };
}

setter!(set_text, &ActivityCtx, &str, onward::Result<()>, Ok(()));
setter!(set_number, &ActivityCtx<App>, u64, Done, Ok(()));

#[test]
fn definitions_say_what_was_written() {
    assert_eq!(set_text::NAME, "set_text");
    assert_eq!(set_number::NAME, "set_number");
    assert_eq!(charge::NAME, "charge");
    assert_eq!(Aliased::NAME, "aliased-activity");
    assert_eq!(r#type::NAME, "type");
    assert_eq!(<vendored::far as Activity>::NAME, "far");
    assert_eq!(count::NAME, "count");
    assert_eq!((letters::C::NAME, letters::D::NAME), ("first", "second"));
    let defaults = charge::DEFAULTS;
    assert_eq!(defaults.start_to_close(), Duration::from_secs(30));
    assert_eq!(defaults.schedule_to_close(), Some(Duration::from_mins(90)));
    assert_eq!(defaults.retry_policy().allowed_attempts(), 5);
    assert!(defaults.retry_policy().rules_out("PaymentError::Declined"));
    assert_eq!(defaults.retry_policy().delay_after(2), Duration::from_millis(400));
}
