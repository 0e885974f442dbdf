//! What people type and write: command lines, settings, files of orders, urls.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use onward_server::store;

/// The example's own file: it stays as a user would write it, without a library for our sake.
#[path = "../../../../worker-examples/orders/src/orders.rs"]
#[allow(dead_code, unreachable_pub)]
mod orders;

/// Names of hosts are looked up in the network, which a fuzzer does not do.
const LOOKED_UP: &str = "listen";

/// A command line, a word on each line.
pub(crate) fn command_lines(input: &[u8]) {
    let is_looked_up = |word: &&[u8]| String::from_utf8_lossy(word).contains(LOOKED_UP);
    let words = input.split(|byte| *byte == b'\n').filter(|word| !is_looked_up(word));
    let words = words.map(|word| OsString::from_vec(word.to_owned()));
    let program = OsString::from("onward");
    if let Err(text) = onward_cli::check_command_line(std::iter::once(program).chain(words)) {
        assert!(!text.is_empty(), "whoever types something wrong is told so");
    }
}

/// A file of settings.
pub(crate) fn settings(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if !text.contains(LOOKED_UP)
        && let Err(text) = onward_cli::check_settings(&text)
    {
        assert!(!text.is_empty(), "whoever writes something wrong is told so");
    }
}

/// A file of orders, with its header or without.
pub(crate) fn orders_files(input: &[u8]) {
    let with_header = [orders::HEADER.as_bytes(), b"\n", input].concat();
    for bytes in [input, &with_header] {
        let Ok(file) = orders::OrdersFile::parse(bytes) else { continue };
        let numbers: Vec<_> = file.lines.iter().map(|line| line.number).collect();
        assert!(numbers.is_sorted(), "lines are counted as they come");
        let good = file.lines.iter().filter(|line| line.order.is_ok()).count();
        assert!(file.owners().len() <= good, "an order is of a line that can be read");
        for order in file.lines.iter().filter_map(|line| line.order.as_ref().ok()) {
            assert!(order.quantity > 0 && order.amount.0 > 0, "{order:?}");
        }
    }
}

/// The url of a store; and one with the input for a password.
pub(crate) fn store_urls(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    drop(store::check_url(&text));
    drop(onward_cli::without_secrets(&text));
    let url = format!("postgres://user:hidden{text}hidden@host/database");
    drop(store::check_url(&url));
    let shown = onward_cli::without_secrets(&url);
    assert!(!shown.contains("hidden"), "{shown}");
}
