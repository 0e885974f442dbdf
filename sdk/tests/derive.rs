//! What the derives make of a type, as a worker and a caller see it.
#![allow(clippy::unwrap_used)]

use onward::{ActivityError, Cancelled, Failure, Provide, RetryHint, prelude::*};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
enum PaymentError {
    #[error("card declined: {reason}")]
    #[failure(terminal)]
    Declined { reason: String },
    #[error("slow down")]
    #[failure(retry_after = after)]
    RateLimited { after: Duration },
    #[error("come back later")]
    #[failure(retry_after = 1)]
    Later(u8, Duration),
    #[error("gone")]
    #[failure(kind = "PaymentError::Unreachable")]
    Gone,
    #[error(transparent)]
    Other(#[from] onward::Error),
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
enum OrderError {
    #[error("rejected by {by}")]
    Rejected { by: String },
    #[error("payment")]
    Payment(#[from] ActivityError<PaymentError>),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error("bad name")]
    Name(
        #[from]
        #[serde(with = "as_text")]
        std::fmt::Error,
    ),
    #[error("terminal, whatever it wraps")]
    #[failure(terminal)]
    Wrapped(#[source] PaymentError),
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde lends the field")]
    pub(super) fn serialize<S: Serializer>(_: &std::fmt::Error, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<std::fmt::Error, D::Error> {
        String::deserialize(from).map(|_| std::fmt::Error)
    }
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
#[error("out of {item}")]
#[failure(terminal)]
struct OutOfStock {
    item: String,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, Failure)]
#[error(transparent)]
struct Wrapper(onward::Error);

fn declined() -> PaymentError {
    PaymentError::Declined { reason: "empty".into() }
}

#[test]
fn a_kind_is_the_path_of_the_variant_unless_it_is_given() {
    assert_eq!(declined().kind(), "PaymentError::Declined");
    assert_eq!(PaymentError::Gone.kind(), "PaymentError::Unreachable");
    assert_eq!(OutOfStock { item: "tea".into() }.kind(), "OutOfStock");
}

#[test]
fn the_attribute_says_whether_another_attempt_helps() {
    let after = Duration::from_secs(7);
    assert_eq!(declined().retry(), RetryHint::Never);
    assert_eq!(PaymentError::RateLimited { after }.retry(), RetryHint::After(after));
    assert_eq!(PaymentError::Later(1, after).retry(), RetryHint::After(after));
    assert_eq!(PaymentError::Gone.retry(), RetryHint::Retry);
    assert_eq!(OutOfStock { item: "tea".into() }.retry(), RetryHint::Never);
    assert_eq!(OrderError::Rejected { by: "ann".into() }.retry(), RetryHint::Retry);
    assert_eq!(OrderError::Wrapped(PaymentError::Gone).retry(), RetryHint::Never);
}

#[test]
fn a_wrapped_failure_answers_for_its_wrapper() {
    let terminal = || "x".parse::<u8>().terminal().unwrap_err();
    assert_eq!(PaymentError::from(terminal()).retry(), RetryHint::Never);
    assert_eq!(Wrapper(terminal()).retry(), RetryHint::Never);
    assert_eq!(PaymentError::from(onward::Error::msg("x")).retry(), RetryHint::Retry);
}

#[test]
fn only_a_cancellation_and_what_wraps_it_is_cancelled() {
    assert!(OrderError::from(Cancelled).is_cancelled());
    assert!(PaymentError::from(onward::Error::from(Cancelled)).is_cancelled());
    assert!(!PaymentError::from(onward::Error::msg("x")).is_cancelled());
    assert!(!OrderError::Rejected { by: "ann".into() }.is_cancelled());
}

#[test]
fn what_is_no_failure_may_be_wrapped_too() {
    let error = OrderError::from(std::fmt::Error);
    assert_eq!(error.retry(), RetryHint::Retry);
    assert!(!error.is_cancelled());
    assert_eq!(error.kind(), "OrderError::Name");
}

#[test]
fn causes_are_the_messages_of_the_sources() {
    let error = OrderError::from(ActivityError::Failed(declined()));
    assert_eq!(error.to_string(), "payment");
    assert_eq!(error.causes().first().map(String::as_str), Some("card declined: empty"));
    assert!(declined().causes().is_empty());
}

#[test]
fn a_call_that_failed_so_keeps_its_causes_when_it_becomes_any_error() {
    let error = ActivityError::Failed(OrderError::Wrapped(declined()));
    let error = onward::Error::from(error);
    assert_eq!(format!("{error:#}"), "terminal, whatever it wraps: card declined: empty");
}

#[derive(Debug, PartialEq)]
struct Pool(u8);

#[derive(Deps)]
struct App {
    pool: Pool,
    name: String,
    #[deps(skip)]
    spare: Pool,
}

#[derive(Deps)]
struct Pair(Pool, String);

#[derive(Deps)]
struct Nothing;

#[test]
fn an_activity_may_ask_for_a_part_for_the_whole_or_for_nothing() {
    let app = App { pool: Pool(1), name: "shop".into(), spare: Pool(2) };
    assert_eq!(*Provide::<Pool>::provide(&app), Pool(1));
    assert_eq!(*Provide::<String>::provide(&app), "shop");
    assert_eq!(Provide::<App>::provide(&app).spare, Pool(2));
    let () = Provide::<()>::provide(&app);
    assert_eq!(*Provide::<Pool>::provide(&Pair(Pool(3), String::new())), Pool(3));
    let Nothing = Provide::<Nothing>::provide(&Nothing);
}
