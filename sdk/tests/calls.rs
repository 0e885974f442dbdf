//! What a call of a definition hands to the place where it runs.
#![allow(clippy::unwrap_used)]

use onward::{
    ActivityTarget, Codec, WorkflowTarget,
    payload::{self, Args},
    prelude::*,
};
use std::panic::Location;

/// A place that runs nothing and tells what it was given.
struct Desk;

struct Slip {
    name: &'static str,
    arguments: Vec<String>,
    call_site: &'static Location<'static>,
}

impl Slip {
    fn new<A: Args>(name: &'static str, args: &A, call_site: &'static Location<'static>) -> Self {
        let payloads = args.encode(Codec::Json).unwrap().payloads;
        let text = |payload: onward_proto::v1::Payload| String::from_utf8(payload.data.into());
        let arguments = payloads.into_iter().map(|payload| text(payload).unwrap()).collect();
        Self { name, arguments, call_site }
    }
}

impl<A: Activity> ActivityTarget<A> for &Desk {
    type Call = Slip;

    fn call(self, args: A::Args, call_site: &'static Location<'static>) -> Slip {
        Slip::new(A::NAME, &args, call_site)
    }
}

impl<W: Workflow> WorkflowTarget<W> for &Desk {
    type Call = Slip;

    fn call(self, args: W::Args, call_site: &'static Location<'static>) -> Slip {
        Slip::new(W::NAME, &args, call_site)
    }
}

#[activity]
#[allow(clippy::ref_option)]
async fn charge(
    _: &ActivityCtx,
    order: &str,
    items: &[String],
    amount: u64,
    (low, high): (u8, u8),
    note: &Option<String>,
) -> onward::Result<()> {
    let _ = (order, items, amount, low, high, note);
    Ok(())
}

#[workflow(name = "ship-order")]
async fn ship(_: &Ctx, mut order: String, weights: &[u32]) -> onward::Result<String> {
    order.push_str(&weights.len().to_string());
    Ok(order)
}

#[test]
fn arguments_go_in_their_order_lent_ones_as_copies() {
    let items = vec!["tea".to_owned()];
    let slip = charge(&Desk, "order-1", &items, 10, (1, 2), &None);
    assert_eq!(slip.name, "charge");
    assert_eq!(slip.arguments, [r#""order-1""#, r#"["tea"]"#, "10", "[1,2]", "null"]);

    let slip = ship(&Desk, "order-1".into(), &[4, 5]);
    assert_eq!(slip.name, "ship-order");
    assert_eq!(slip.arguments, [r#""order-1""#, "[4,5]"]);
}

#[test]
fn the_call_site_is_the_users_line() {
    let (slip, line) = (ship(&Desk, String::new(), &[]), line!());
    assert_eq!((slip.call_site.file(), slip.call_site.line()), (file!(), line));
}

#[test]
fn lent_parameters_decode_to_their_owned_types() {
    let args: <charge as Activity>::Args =
        (String::from("o"), vec![String::new()], 1, (2, 3), Some("n".into()));
    let payloads = args.encode(Codec::Json).unwrap().payloads;
    assert_eq!(<charge as Activity>::Args::decode(&payloads).unwrap(), args);
    // A parameter added at the end is absent in older calls.
    assert_eq!(<charge as Activity>::Args::decode(&payloads[..4]).unwrap().4, None);
    assert_eq!(payload::decode::<u64>(&payloads[2]).unwrap(), 1);
}

#[workflow(on_panic = "fail")]
async fn brittle(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

#[workflow(on_panic = "retry")]
async fn patient(_: &Ctx) -> onward::Result<()> {
    Ok(())
}

#[test]
fn a_panic_ends_what_the_attribute_says() {
    assert_eq!(brittle::ON_PANIC, onward::OnPanic::Fail);
    assert_eq!(patient::ON_PANIC, onward::OnPanic::Retry);
    assert_eq!(ship::ON_PANIC, onward::OnPanic::Retry);
}
