use onward::prelude::*;

#[activity]
struct Charge;

#[derive(Default)]
struct Checkout;

#[workflow]
impl Checkout {}

fn main() {}
