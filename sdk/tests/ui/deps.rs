use onward::prelude::*;

#[derive(Deps)]
struct Twice {
    first: String,
    second: String,
}

#[derive(Deps)]
struct Generic<T: Send + Sync + 'static> {
    value: T,
    list: Vec<T>,
    count: u32,
}

#[derive(Deps)]
enum Choice {
    One,
}

#[derive(Deps)]
struct Unit {
    nothing: (),
    #[deps(skipp)]
    other: u32,
}

fn main() {}
