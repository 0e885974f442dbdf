//! What a workflow's body must not do, as far as its text shows.
//!
//! A workflow is replayed: whatever it decides must follow from its history. The worker's threads
//! refuse most of what breaks that; this check says it earlier and names the replacement. It reads
//! paths as they are spelled, so `onward::audited!(..)` lets through what only looks wrong, and
//! the closure of `ctx.record(..)` is free, because its result is recorded.

mod hashed;

use crate::{fault::Faults, function::Function};
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use quote::quote;

/// Tells what is forbidden, and returns items that warn about what is doubtful.
pub(crate) fn check(function: &Function, faults: &mut Faults) -> TokenStream {
    scan(function.body.stream(), faults);
    hashed::warnings(function)
}

/// Goes through tokens rather than expressions: the arguments of `println!` and the arms of
/// `select!` are as much part of the body as the rest, and only their macros could parse them.
fn scan(tokens: TokenStream, faults: &mut Faults) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(_) if is_method(&tokens, at, "record") => {
                // The name and its arguments.
                at += 2;
            }
            TokenTree::Ident(_) => {
                let path = path_at(&tokens, at);
                at += path.length;
                if path.is_macro && path.ends_with("audited") {
                    at += 2;
                } else if let Some(instead) = forbidden(&path) {
                    faults.at(&path.tokens, message(&path, instead));
                }
            }
            TokenTree::Group(group) => {
                scan(group.stream(), faults);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Whether `.name(..)` stands here.
fn is_method(tokens: &[TokenTree], at: usize, name: &str) -> bool {
    let after_dot = at.checked_sub(1).is_some_and(|before| is_punct(&tokens[before], '.'));
    after_dot
        && matches!(&tokens[at], TokenTree::Ident(ident) if ident == name)
        && matches!(
            tokens.get(at + 1),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis
        )
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

/// `a::b::c`, and whether a `!` follows.
struct Path {
    segments: Vec<String>,
    tokens: TokenStream,
    /// In tokens.
    length: usize,
    is_macro: bool,
}

fn path_at(tokens: &[TokenTree], start: usize) -> Path {
    let mut segments = Vec::new();
    let mut end = start;
    while let Some(TokenTree::Ident(ident)) = tokens.get(end) {
        segments.push(plain(ident));
        end += 1;
        let goes_on = matches!(tokens.get(end..end + 3), Some([first, second, TokenTree::Ident(_)])
            if is_punct(first, ':') && is_punct(second, ':'));
        if !goes_on {
            break;
        }
        end += 2;
    }
    let is_macro = tokens.get(end).is_some_and(|token| is_punct(token, '!'))
        && matches!(tokens.get(end + 1), Some(TokenTree::Group(_)));
    let tokens = tokens[start..end].iter().cloned().collect();
    Path { segments, tokens, length: end - start, is_macro }
}

fn plain(ident: &Ident) -> String {
    let written = ident.to_string();
    written.strip_prefix("r#").map_or(written.clone(), str::to_owned)
}

impl Path {
    fn ends_with(&self, name: &str) -> bool {
        self.segments.last().is_some_and(|last| last == name)
    }

    fn has(&self, pair: [&str; 2]) -> bool {
        self.segments.windows(2).any(|window| window == pair)
    }

    fn starts(&self, pair: [&str; 2]) -> bool {
        self.segments.get(..2).is_some_and(|start| start == pair)
    }
}

/// What to do instead, if the path is forbidden.
fn forbidden(path: &Path) -> Option<&'static str> {
    const CLOCK: &str = "the clock differs on replay: use `ctx.now()`";
    const RANDOM: &str = "random values differ on replay: use `ctx.rng()`";
    const UUID: &str = "a random id differs on replay: use `ctx.uuid()`";
    const SELECT: &str = "its choice is random: use `onward::wf::select!`";
    const SLEEP: &str = "a workflow waits durably: use `ctx.sleep(..)` or `ctx.timeout(..)`";
    const SPAWN: &str = "a workflow is one task: await with `onward::wf::join!`, \
                         or `.start()` a call to have it go on meanwhile";
    const OUTSIDE: &str = "the world outside differs on replay: do it in an activity";
    const THREAD: &str = "a workflow runs on one thread, which it must not block: do it in an \
                          activity, and wait with `ctx.sleep(..)`";
    const ENVIRONMENT: &str = "the environment differs on replay: pass the value as an argument, \
                               or read it inside of `ctx.record(..)`";

    if path.is_macro {
        let is_random = ["tokio", "futures", "futures_util"]
            .into_iter()
            .any(|runtime| path.starts([runtime, "select"]));
        return is_random.then_some(SELECT);
    }
    let second = path.segments.get(1).map_or("", String::as_str);
    let third = path.segments.get(2).map_or("", String::as_str);
    match path.segments[0].as_str() {
        "tokio" => match second {
            "spawn" | "task" => return Some(SPAWN),
            // A plain duration under another name.
            "time" if third == "Duration" => return None,
            "time" => return Some(SLEEP),
            "net" | "fs" => return Some(OUTSIDE),
            _ => {}
        },
        "std" => match second {
            "thread" => return Some(THREAD),
            "env" => return Some(ENVIRONMENT),
            // Addresses are values like any other.
            "net" if third.starts_with("Ip") || third.starts_with("SocketAddr") => return None,
            "net" | "fs" => return Some(OUTSIDE),
            _ => {}
        },
        "thread" if matches!(second, "spawn" | "sleep" | "scope") => return Some(THREAD),
        "rand" if matches!(second, "random" | "rng" | "thread_rng") => return Some(RANDOM),
        _ => {}
    }
    if path.has(["SystemTime", "now"])
        || path.has(["Instant", "now"])
        || path.has(["Utc", "now"])
        || path.has(["Local", "now"])
    {
        return Some(CLOCK);
    }
    if path.has(["Uuid", "new_v4"]) || path.has(["Uuid", "now_v7"]) {
        return Some(UUID);
    }
    None
}

fn message(path: &Path, instead: &str) -> String {
    let bang = if path.is_macro { "!" } else { "" };
    format!(
        "`{}{bang}` in a workflow: {instead} (`onward::audited!(..)` if you know better)",
        path.segments.join("::"),
    )
}

/// An item that makes the compiler warn at the place of `tokens`.
fn warning(note: &str, at: &TokenStream) -> TokenStream {
    use syn::spanned::Spanned as _;
    let name = Ident::new("iteration_in_hash_order", at.span());
    let plain_name = Ident::new("iteration_in_hash_order", proc_macro2::Span::call_site());
    quote! {
        const _: () = {
            #[allow(non_upper_case_globals)]
            #[deprecated(note = #note)]
            const #plain_name: () = ();
            #name
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: TokenStream) -> Vec<String> {
        let mut faults = Faults::default();
        scan(body, &mut faults);
        faults.messages()
    }

    fn is_clean(body: TokenStream) -> bool {
        messages(body).is_empty()
    }

    #[test]
    fn every_way_out_of_the_history_is_told() {
        for (body, path) in [
            (quote!(tokio::spawn(async {});), "tokio::spawn"),
            (quote!(::tokio::time::sleep(d).await;), "tokio::time::sleep"),
            (
                quote!(
                    use tokio::time::{sleep};
                ),
                "tokio::time",
            ),
            (quote!(tokio::select! { _ = a => {} }), "tokio::select!"),
            (quote!(tokio::net::TcpStream::connect(a).await), "tokio::net::TcpStream::connect"),
            (quote!(tokio::fs::read(p).await), "tokio::fs::read"),
            (quote!(std::thread::sleep(d)), "std::thread::sleep"),
            (quote!(thread::sleep(d)), "thread::sleep"),
            (quote!(std::time::SystemTime::now()), "std::time::SystemTime::now"),
            (quote!(Instant::now()), "Instant::now"),
            (quote!(chrono::Utc::now()), "chrono::Utc::now"),
            (quote!(Local::now()), "Local::now"),
            (quote!(Uuid::new_v4()), "Uuid::new_v4"),
            (quote!(rand::random::<u8>()), "rand::random"),
            (quote!(rand::rng()), "rand::rng"),
            (quote!(rand::thread_rng()), "rand::thread_rng"),
            (quote!(std::env::var("X")), "std::env::var"),
            (quote!(std::fs::read(p)), "std::fs::read"),
            (quote!(std::net::TcpStream::connect(a)), "std::net::TcpStream::connect"),
            (quote!(futures::select! { _ = a => {} }), "futures::select!"),
        ] {
            let found = messages(body);
            assert!(found.len() == 1 && found[0].starts_with(&format!("`{path}` ")), "{found:?}");
        }
    }

    #[test]
    fn it_looks_into_blocks_closures_and_macros() {
        assert_eq!(
            messages(quote!(if a {
                f(|| Instant::now())
            }))
            .len(),
            1
        );
        assert_eq!(messages(quote!(println!("{:?}", Instant::now()))).len(), 1);
        assert_eq!(
            messages(quote!(select! { _ = tokio::time::sleep(d) => rand::random() })).len(),
            2
        );
    }

    #[test]
    fn what_is_audited_or_recorded_is_free() {
        assert!(is_clean(quote!(onward::audited!(Instant::now()))));
        assert!(is_clean(quote!(audited!(std::env::var("X")).ok();)));
        assert!(is_clean(quote!(ctx.record(|| std::env::var("X").ok()).await)));
        assert_eq!(messages(quote!(ctx.record(|| 1).await; Instant::now())).len(), 1);
        assert_eq!(messages(quote!(record(|| Instant::now()))).len(), 1);
    }

    #[test]
    fn values_and_the_users_own_names_are_free() {
        assert!(is_clean(quote!(let d = tokio::time::Duration::from_secs(1);)));
        assert!(is_clean(quote!(let a: std::net::IpAddr = order.address;)));
        assert!(is_clean(quote!(let v = std::env!("CARGO_PKG_VERSION");)));
        assert!(is_clean(quote!(futures::join!(a, b))));
        assert!(is_clean(quote!(ctx.now())));
        assert!(is_clean(quote!(let thread = 1; thread + 1;)));
        assert!(is_clean(quote!(let f: fn(Instant) = g;)));
    }
}
