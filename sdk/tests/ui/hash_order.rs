#![deny(deprecated)]

use onward::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

#[workflow]
async fn totals(_: &Ctx, by_name: HashMap<String, u64>) -> onward::Result<u64> {
    let mut total = 0;
    for (_, amount) in &by_name {
        total += amount;
    }
    let mut seen = HashSet::new();
    seen.insert(total);
    total += seen.iter().sum::<u64>();

    // Looking up has no order, and neither of these is hashed.
    total += by_name.get("ann").copied().unwrap_or(0);
    let sorted: BTreeMap<_, _> = by_name.into_iter().collect();
    for (_, amount) in sorted {
        total += amount;
    }
    Ok(total)
}

fn main() {}
