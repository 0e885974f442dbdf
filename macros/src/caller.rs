//! What callers see of a definition: a function that runs it wherever its first argument says,
//! and a type of the same name that stands for it in lists.

use crate::function::{Function, Param, Passing};
use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Attribute, Path, spanned::Spanned as _};

/// The function and its marker type. `target` is the trait that decides what the first argument
/// means.
pub(crate) fn expand(
    function: &Function,
    marker: &Ident,
    sdk: &Path,
    target: &Ident,
) -> TokenStream {
    let Function { attrs, vis, sig, context, params, .. } = function;
    let cfgs = cfgs(attrs);
    let attrs = attrs.iter().filter(|attr| is_for_caller(attr));
    let name = &sig.ident;
    let ctx = &context.name;
    let generic = generic_name("C", marker, params);
    let parameters = params.iter().map(|Param { name, ty, .. }| quote!(#name: #ty));
    let arguments = params.iter().map(to_owned);
    quote! {
        #(#attrs)*
        #[track_caller]
        #[allow(dead_code, clippy::needless_pass_by_value, clippy::trivially_copy_pass_by_ref)]
        #vis fn #name<#generic: #sdk::__::#target<#marker>>(
            #ctx: #generic,
            #(#parameters),*
        ) -> #generic::Call {
            #generic::call(#ctx, (#(#arguments,)*), ::core::panic::Location::caller())
        }

        // Braces put it in the type namespace alone, where it does not meet the function.
        #(#cfgs)*
        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types)]
        #vis struct #marker {}
    }
}

/// The types of the arguments as they are decoded. An argument that cannot be recorded is an
/// error at the parameter list.
pub(crate) fn owned_types(function: &Function) -> TokenStream {
    let types = function.params.iter().map(|param| match &param.passing {
        Passing::ByValue => param.ty.to_token_stream(),
        Passing::ByReference(ty) => {
            quote_spanned!(ty.span()=> <#ty as ::std::borrow::ToOwned>::Owned)
        }
    });
    let mut tuple = Group::new(Delimiter::Parenthesis, quote!(#(#types,)*));
    tuple.set_span(function.sig.paren_token.span.join());
    tuple.into_token_stream()
}

/// The user's own function, body untouched, and an expression that calls it with `ctx` and the
/// decoded `args`.
pub(crate) fn inner(function: &Function) -> (TokenStream, TokenStream) {
    let Function { attrs, sig, body, params, .. } = function;
    let attrs = attrs.iter().filter(|attr| !attr.path().is_ident("deprecated"));
    let name = Ident::new(&format!("__{}", function.plain_name()), Span::mixed_site());
    let (asyncness, fn_token) = (&sig.asyncness, &sig.fn_token);
    let (inputs, output) = (&sig.inputs, &sig.output);
    let item = quote! {
        #(#attrs)*
        #[allow(
            clippy::needless_pass_by_value,
            clippy::trivially_copy_pass_by_ref,
            clippy::unnecessary_wraps,
            clippy::unused_async,
        )]
        #asyncness #fn_token #name(#inputs) #output #body
    };
    let arguments = params.iter().enumerate().map(|(index, param)| {
        let index = syn::Index::from(index);
        match &param.passing {
            Passing::ByValue => quote!(args.#index),
            Passing::ByReference(ty) => quote!(::core::borrow::Borrow::<#ty>::borrow(&args.#index)),
        }
    });
    (item, quote!(#name(ctx, #(#arguments),*)))
}

/// The conditions under which the item exists; what is generated beside it exists under the same.
pub(crate) fn cfgs(attrs: &[Attribute]) -> Vec<&Attribute> {
    attrs.iter().filter(|attr| attr.path().is_ident("cfg")).collect()
}

fn is_for_caller(attr: &Attribute) -> bool {
    ["doc", "cfg", "allow", "warn", "deny", "deprecated"]
        .iter()
        .any(|known| attr.path().is_ident(known))
}

fn to_owned(Param { name, passing, .. }: &Param) -> TokenStream {
    match passing {
        Passing::ByValue => name.to_token_stream(),
        Passing::ByReference(ty) => {
            quote_spanned!(ty.span()=> <#ty as ::std::borrow::ToOwned>::to_owned(#name))
        }
    }
}

/// A short name for a type parameter, unless the marker or a parameter's type speaks of a type of
/// the user's by that name.
pub(crate) fn generic_name(short: &str, marker: &Ident, params: &[Param]) -> Ident {
    let taken =
        marker == short || params.iter().any(|param| mentions(param.ty.to_token_stream(), short));
    if taken { format_ident!("__{short}") } else { format_ident!("{short}") }
}

fn mentions(tokens: TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == word,
        TokenTree::Group(group) => mentions(group.stream(), word),
        _ => false,
    })
}
