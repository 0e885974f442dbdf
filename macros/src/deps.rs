//! `#[derive(Deps)]`.

use crate::{fault::Faults, keys};
use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens as _, quote, quote_spanned};
use std::collections::BTreeMap;
use syn::{
    Data, DeriveInput, Field, GenericParam, Member, Path, Token, Type, spanned::Spanned as _,
};

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let mut faults = Faults::default();
    let tokens = match syn::parse2(item) {
        Ok(input) => Deps::parse(&input, &mut faults).map(Deps::into_tokens),
        Err(error) => {
            faults.add(error);
            None
        }
    };
    faults.before(tokens.unwrap_or_default())
}

struct Deps<'a> {
    input: &'a DeriveInput,
    sdk: Path,
    provided: Vec<(Member, &'a Type)>,
}

impl<'a> Deps<'a> {
    /// `None` only when nothing sensible can be generated.
    fn parse(input: &'a DeriveInput, faults: &mut Faults) -> Option<Self> {
        let Data::Struct(data) = &input.data else {
            faults.at(
                &input.ident,
                "dependencies are a struct: an activity asks for one of its fields by type, or for \
                 the whole",
            );
            return None;
        };
        let sdk = sdk(input, faults);
        let mut provided = Vec::new();
        let mut seen = BTreeMap::new();
        for (member, field) in data.fields.members().zip(&data.fields) {
            if is_skipped(field, faults) {
                continue;
            }
            let ty = &field.ty;
            if is_unit(ty) || is_self(ty, &input.ident) {
                faults.at(
                    ty,
                    format!(
                        "`{}` is provided already: mark the field `#[deps(skip)]`",
                        ty.to_token_stream()
                    ),
                );
            } else if let Some(param) = generic_in(input, ty) {
                faults.at(
                    ty,
                    format!(
                        "a field of a generic type cannot be provided, as `{param}` could be any \
                         type, even that of another field: name the type, or mark the field \
                         `#[deps(skip)]`"
                    ),
                );
            } else if let Some(first) =
                seen.insert(ty.to_token_stream().to_string(), member.to_token_stream().to_string())
            {
                faults.at(
                    ty,
                    format!(
                        "`{}` is provided by the field `{first}` already, and activities ask by \
                         type: mark one of them `#[deps(skip)]`, or wrap it in a type of its own",
                        ty.to_token_stream()
                    ),
                );
            } else {
                provided.push((member, ty));
            }
        }
        Some(Self { input, sdk, provided })
    }

    fn into_tokens(self) -> TokenStream {
        let Self { input, sdk, provided } = self;
        let name = &input.ident;
        let (impl_generics, type_generics, clause) = input.generics.split_for_impl();
        let fields = provided.iter().map(|(member, ty)| {
            quote_spanned! {ty.span()=>
                #[automatically_derived]
                impl #impl_generics #sdk::Provide<#ty> for #name #type_generics #clause {
                    fn provide(&self) -> &#ty {
                        &self.#member
                    }
                }
            }
        });
        quote! {
            #(#fields)*

            #[automatically_derived]
            impl #impl_generics #sdk::Provide<Self> for #name #type_generics #clause {
                fn provide(&self) -> &Self {
                    self
                }
            }

            #[automatically_derived]
            impl #impl_generics #sdk::Provide<()> for #name #type_generics #clause {
                fn provide(&self) -> &() {
                    &()
                }
            }
        }
    }
}

fn sdk(input: &DeriveInput, faults: &mut Faults) -> Path {
    let mut sdk = syn::parse_quote!(::onward);
    for attr in input.attrs.iter().filter(|attr| attr.path().is_ident("deps")) {
        let Some(list) = faults.keep(attr.meta.require_list()) else { continue };
        keys::each(list.tokens.clone(), &["crate"], faults, |_, input, _| {
            input.parse::<Token![=]>()?;
            sdk = input.call(Path::parse_mod_style)?;
            Ok(())
        });
    }
    sdk
}

fn is_skipped(field: &Field, faults: &mut Faults) -> bool {
    let mut skipped = false;
    for attr in field.attrs.iter().filter(|attr| attr.path().is_ident("deps")) {
        // A mistake in the attribute is told, and not also what it would have prevented.
        skipped = true;
        let Some(list) = faults.keep(attr.meta.require_list()) else { continue };
        keys::each(list.tokens.clone(), &["skip"], faults, |_, _, _| Ok(()));
    }
    skipped
}

fn is_unit(ty: &Type) -> bool {
    matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty())
}

fn is_self(ty: &Type, name: &Ident) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("Self") || path.path.is_ident(name))
}

/// The generic parameter that the type mentions.
fn generic_in(input: &DeriveInput, ty: &Type) -> Option<String> {
    input.generics.params.iter().find_map(|param| {
        let (name, mentioned) = match param {
            GenericParam::Type(param) => (param.ident.to_string(), &param.ident),
            GenericParam::Const(param) => (param.ident.to_string(), &param.ident),
            GenericParam::Lifetime(param) => (param.lifetime.to_string(), &param.lifetime.ident),
        };
        mentions(ty.to_token_stream(), mentioned).then_some(name)
    })
}

fn mentions(tokens: TokenStream, word: &Ident) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == *word,
        TokenTree::Group(group) => mentions(group.stream(), word),
        _ => false,
    })
}
