//! The keys of `#[activity(...)]` and `#[workflow(...)]`.

use crate::{duration, fault::Faults, keys};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};
use std::time::Duration;
use syn::{
    LitFloat, LitInt, LitStr, Path, Token, parenthesized, parse::ParseStream,
    punctuated::Punctuated, token::Paren,
};

/// What both attributes know.
pub(crate) struct Naming {
    /// The name the server knows; the function's own when `None`.
    pub(crate) name: Option<LitStr>,
    /// The marker type's name; the function's own when `None`.
    pub(crate) marker: Option<Ident>,
    /// Where the SDK is found.
    pub(crate) sdk: Path,
}

impl Default for Naming {
    fn default() -> Self {
        Self { name: None, marker: None, sdk: syn::parse_quote!(::onward) }
    }
}

impl Naming {
    pub(crate) const KEYS: [&'static str; 3] = ["name", "crate", "marker"];

    /// Reads one of [`Naming::KEYS`].
    fn read(&mut self, key: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        if key == "name" {
            self.name = Some(name(keys::value(input)?)?);
        } else if key == "crate" {
            self.sdk = {
                input.parse::<Token![=]>()?;
                input.call(Path::parse_mod_style)?
            };
        } else {
            self.marker = Some(keys::value(input)?);
        }
        Ok(())
    }
}

fn name(literal: LitStr) -> syn::Result<LitStr> {
    let name = literal.value();
    let wrong = if name.is_empty() {
        "a name cannot be empty"
    } else if name.len() > 200 {
        "a name has at most 200 bytes"
    } else if name.chars().any(char::is_control) {
        "a name cannot hold control characters"
    } else {
        return Ok(literal);
    };
    Err(syn::Error::new(literal.span(), wrong))
}

/// The keys of `#[workflow(...)]`.
#[derive(Default)]
pub(crate) struct WorkflowOptions {
    pub(crate) naming: Naming,
    /// Whether a panic fails the run.
    pub(crate) fails_on_panic: bool,
}

impl WorkflowOptions {
    /// Whatever could be read; mistakes go to `faults`.
    pub(crate) fn parse(args: TokenStream, faults: &mut Faults) -> Self {
        let mut options = Self::default();
        let [name, path, marker] = Naming::KEYS;
        keys::each(args, &[name, path, marker, "on_panic"], faults, |key, input, _| {
            if key != "on_panic" {
                return options.naming.read(key, input);
            }
            let what: LitStr = keys::value(input)?;
            options.fails_on_panic = match what.value().as_str() {
                "fail" => true,
                "retry" => false,
                _ => {
                    let known = "`on_panic` is \"retry\" (the task, until it goes well) or \"fail\" (the run)";
                    return Err(syn::Error::new(what.span(), known));
                }
            };
            Ok(())
        });
        options
    }
}

/// The keys of `#[activity(...)]`.
#[derive(Default)]
pub(crate) struct ActivityOptions {
    pub(crate) naming: Naming,
    pub(crate) defaults: Defaults,
}

/// What holds for a call that does not say otherwise.
#[derive(Default)]
pub(crate) struct Defaults {
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    queue_timeout: Option<Duration>,
    heartbeat: Option<Duration>,
    queue: Option<LitStr>,
    priority: Option<i32>,
    retry: Option<Retry>,
}

/// The keys of `retry(...)`.
#[derive(Default)]
struct Retry {
    max_attempts: Option<u32>,
    initial: Option<Duration>,
    max_interval: Option<Duration>,
    backoff: Option<f64>,
    never_on: Vec<LitStr>,
}

impl ActivityOptions {
    const KEYS: [&'static str; 10] = [
        "name",
        "timeout",
        "deadline",
        "queue_timeout",
        "heartbeat",
        "queue",
        "priority",
        "retry",
        "crate",
        "marker",
    ];

    /// Whatever could be read; mistakes go to `faults`.
    pub(crate) fn parse(args: TokenStream, faults: &mut Faults) -> Self {
        let mut options = Self::default();
        let Self { naming, defaults } = &mut options;
        keys::each(args, &Self::KEYS, faults, |key, input, faults| {
            match key.to_string().as_str() {
                "timeout" => defaults.timeout = Some(positive(input)?),
                "deadline" => defaults.deadline = Some(positive(input)?),
                "queue_timeout" => defaults.queue_timeout = Some(positive(input)?),
                "heartbeat" => defaults.heartbeat = Some(positive(input)?),
                "queue" => defaults.queue = Some(name(keys::value(input)?)?),
                "priority" => defaults.priority = Some(priority(input)?),
                "retry" => {
                    if !input.peek(Paren) {
                        return Err(
                            input.error("expected parentheses, as in `retry(max_attempts = 5)`")
                        );
                    }
                    let content;
                    parenthesized!(content in input);
                    defaults.retry = Some(Retry::parse(content.parse()?, faults));
                }
                _ => naming.read(key, input)?,
            }
            Ok(())
        });
        options
    }
}

impl Defaults {
    /// A constant of the SDK's `ActivityOptions`.
    pub(crate) fn into_tokens(self, sdk: &Path) -> TokenStream {
        let settings = [
            ("timeout", self.timeout.map(duration_tokens)),
            ("deadline", self.deadline.map(duration_tokens)),
            ("queue_timeout", self.queue_timeout.map(duration_tokens)),
            ("heartbeat", self.heartbeat.map(duration_tokens)),
            ("retry", self.retry.map(|retry| retry.into_tokens(sdk))),
            ("queue", self.queue.map(ToTokens::into_token_stream)),
            ("priority", self.priority.map(ToTokens::into_token_stream)),
        ];
        let settings = set(settings);
        quote!(#sdk::ActivityOptions::new()#settings)
    }
}

impl Retry {
    /// A constant of the SDK's `Retry`.
    fn into_tokens(self, sdk: &Path) -> TokenStream {
        let kinds = &self.never_on;
        let settings = [
            ("max_attempts", self.max_attempts.map(ToTokens::into_token_stream)),
            ("initial", self.initial.map(duration_tokens)),
            ("backoff", self.backoff.map(ToTokens::into_token_stream)),
            ("max_interval", self.max_interval.map(duration_tokens)),
            ("never_on", (!kinds.is_empty()).then(|| quote!(&[#(#kinds),*]))),
        ];
        let settings = set(settings);
        quote!(#sdk::Retry::new()#settings)
    }
}

/// `.key(value)` for each that is set.
fn set<const N: usize>(settings: [(&str, Option<TokenStream>); N]) -> TokenStream {
    let set = settings.into_iter().filter_map(|(key, value)| {
        let (key, value) = (Ident::new(key, Span::call_site()), value?);
        Some(quote!(.#key(#value)))
    });
    set.collect()
}

fn duration_tokens(duration: Duration) -> TokenStream {
    let millis = u64::try_from(duration.as_millis()).expect("at most 100 years");
    quote!(::core::time::Duration::from_millis(#millis))
}

impl Retry {
    const KEYS: [&'static str; 5] =
        ["max_attempts", "initial", "max_interval", "backoff", "never_on"];

    fn parse(tokens: TokenStream, faults: &mut Faults) -> Self {
        let mut retry = Self::default();
        keys::each(tokens, &Self::KEYS, faults, |key, input, _| {
            match key.to_string().as_str() {
                "max_attempts" => retry.max_attempts = Some(max_attempts(input)?),
                "initial" => retry.initial = Some(positive(input)?),
                "max_interval" => retry.max_interval = Some(positive(input)?),
                "backoff" => retry.backoff = Some(backoff(input)?),
                _ => {
                    let content;
                    parenthesized!(content in input);
                    let kinds = Punctuated::<LitStr, Token![,]>::parse_terminated(&content)?;
                    retry.never_on = kinds.into_iter().collect();
                }
            }
            Ok(())
        });
        retry
    }
}

/// A duration that is not zero.
fn positive(input: ParseStream<'_>) -> syn::Result<Duration> {
    input.parse::<Token![=]>()?;
    if !input.peek(LitStr) {
        return Err(input.error(r#"expected a duration in quotes, as in "30s""#));
    }
    let literal: LitStr = input.parse()?;
    let duration = duration::parse(&literal)?;
    if duration.is_zero() {
        return Err(syn::Error::new(literal.span(), "a duration of zero; leave the key out"));
    }
    Ok(duration)
}

fn priority(input: ParseStream<'_>) -> syn::Result<i32> {
    input.parse::<Token![=]>()?;
    let minus = input.parse::<Option<Token![-]>>()?;
    let literal: LitInt = input.parse()?;
    let priority: i32 = literal.base10_parse()?;
    Ok(if minus.is_some() { -priority } else { priority })
}

fn max_attempts(input: ParseStream<'_>) -> syn::Result<u32> {
    let literal: LitInt = keys::value(input)?;
    match literal.base10_parse()? {
        0 => Err(syn::Error::new(
            literal.span(),
            "an activity is attempted at least once; leave `max_attempts` out for no limit",
        )),
        attempts => Ok(attempts),
    }
}

/// The steepest backoff that the server takes.
const MAX_BACKOFF: f64 = 1_000.0;

fn backoff(input: ParseStream<'_>) -> syn::Result<f64> {
    input.parse::<Token![=]>()?;
    let (factor, span) = if input.peek(LitInt) {
        let literal: LitInt = input.parse()?;
        (literal.base10_parse::<f64>()?, literal.span())
    } else {
        let literal: LitFloat = input.parse()?;
        (literal.base10_parse::<f64>()?, literal.span())
    };
    let refused = |message| Err(syn::Error::new(span, message));
    if factor > MAX_BACKOFF {
        refused("the server takes no backoff above 1000")
    } else if factor >= 1.0 {
        Ok(factor)
    } else {
        refused("a backoff below 1 would retry faster and faster; 1 keeps the interval")
    }
}
