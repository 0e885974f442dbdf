//! Reads what stands in the parentheses of an attribute, key by key, and goes on after a mistake.

use crate::{fault::Faults, suggest};
use proc_macro2::{Ident, TokenStream};
use std::collections::BTreeSet;
use syn::{
    Token,
    ext::IdentExt as _,
    parse::{ParseStream, Parser as _},
};

/// Calls `read` for each key, positioned after it. `read` is not called for a key that is not
/// `known` or stands there a second time; whatever it leaves unread up to the next comma is a
/// mistake.
pub(crate) fn each(
    tokens: TokenStream,
    known: &[&str],
    faults: &mut Faults,
    mut read: impl FnMut(&Ident, ParseStream<'_>, &mut Faults) -> syn::Result<()>,
) {
    let parser = |input: ParseStream<'_>| {
        let mut seen = BTreeSet::new();
        while !input.is_empty() {
            if let Err(error) = one(input, known, &mut seen, faults, &mut read) {
                faults.add(error);
                skip_to_comma(input)?;
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    };
    if let Err(error) = parser.parse2(tokens) {
        faults.add(error);
    }
}

fn one(
    input: ParseStream<'_>,
    known: &[&str],
    seen: &mut BTreeSet<String>,
    faults: &mut Faults,
    read: &mut impl FnMut(&Ident, ParseStream<'_>, &mut Faults) -> syn::Result<()>,
) -> syn::Result<()> {
    let key = input.call(Ident::parse_any)?;
    let written = key.to_string();
    if !known.contains(&written.as_str()) {
        return Err(syn::Error::new(key.span(), suggest::unknown_key(&written, known)));
    }
    if !seen.insert(written.clone()) {
        return Err(syn::Error::new(key.span(), format!("`{written}` is given twice")));
    }
    read(&key, input, faults)?;
    if input.is_empty() || input.peek(Token![,]) {
        Ok(())
    } else {
        Err(input.error("expected `,`"))
    }
}

fn skip_to_comma(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}

/// The value of `key = value`.
pub(crate) fn value<T: syn::parse::Parse>(input: ParseStream<'_>) -> syn::Result<T> {
    input.parse::<Token![=]>()?;
    input.parse()
}
