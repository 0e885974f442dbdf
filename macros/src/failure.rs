//! `#[derive(Failure)]`.

use crate::{fault::Faults, keys};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::{
    Attribute, Data, DeriveInput, Field, Fields, LitInt, LitStr, Member, Path, Token, Type,
    parse::ParseStream, spanned::Spanned as _,
};

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let mut faults = Faults::default();
    let tokens = match syn::parse2(item) {
        Ok(input) => Failure::parse(&input, &mut faults).map(Failure::into_tokens),
        Err(error) => {
            faults.add(error);
            None
        }
    };
    faults.before(tokens.unwrap_or_default())
}

struct Failure<'a> {
    input: &'a DeriveInput,
    sdk: Path,
    cases: Vec<Case>,
}

/// A variant, or the whole of a struct.
struct Case {
    /// Matches it, and binds the field that decides, if there is one.
    pattern: TokenStream,
    kind: String,
    retry: Hint,
    /// The failure inside, when this one only carries it on.
    inner: Option<Ident>,
}

enum Hint {
    Retry,
    Never,
    After(Ident),
    AsInner,
}

/// `#[failure(...)]` on a variant or a struct.
#[derive(Default)]
struct Options {
    terminal: Option<Span>,
    retry_after: Option<Member>,
    kind: Option<LitStr>,
    sdk: Option<Path>,
}

const CASE_KEYS: &[&str] = &["terminal", "retry_after", "kind"];
const STRUCT_KEYS: &[&str] = &["terminal", "retry_after", "kind", "crate"];

impl<'a> Failure<'a> {
    /// `None` only when nothing sensible can be generated.
    fn parse(input: &'a DeriveInput, faults: &mut Faults) -> Option<Self> {
        let name = &input.ident;
        let (options, cases) = match &input.data {
            Data::Struct(data) => {
                let options = Options::parse(&input.attrs, STRUCT_KEYS, faults);
                let path = quote!(#name);
                let case = Case::new(
                    &path,
                    name.to_string(),
                    &input.attrs,
                    &data.fields,
                    &options,
                    faults,
                );
                (options, vec![case])
            }
            Data::Enum(data) => {
                let cases = data.variants.iter().map(|variant| {
                    let variant_name = &variant.ident;
                    let options = Options::parse(&variant.attrs, CASE_KEYS, faults);
                    let kind = format!("{name}::{variant_name}");
                    let path = quote!(#name::#variant_name);
                    Case::new(&path, kind, &variant.attrs, &variant.fields, &options, faults)
                });
                let cases = cases.collect();
                let options = Options::parse(&input.attrs, STRUCT_KEYS, faults);
                options.refuse_on_enum(faults);
                (options, cases)
            }
            Data::Union(data) => {
                faults.at(
                    data.union_token,
                    "a failure is an enum or a struct: a union cannot be recorded",
                );
                return None;
            }
        };
        let sdk = options.sdk.unwrap_or_else(|| syn::parse_quote!(::onward));
        Some(Self { input, sdk, cases })
    }

    fn into_tokens(self) -> TokenStream {
        let Self { input, sdk, cases } = self;
        let name = &input.ident;
        let (impl_generics, type_generics, clause) = input.generics.split_for_impl();
        let retry = cases.iter().map(|case| case.retry(&sdk));
        let kind = cases.iter().map(Case::kind);
        let is_cancelled = cases.iter().map(|case| case.is_cancelled(&sdk));
        // An enum without variants cannot be matched by reference.
        let subject = if cases.is_empty() { quote!(*self) } else { quote!(self) };
        quote! {
            const _: () = {
                #[allow(unused_imports)]
                use #sdk::__::{
                    ForwardCauses as _, ForwardFailure as _, ForwardNoCauses as _,
                    ForwardNothing as _,
                };

                #[automatically_derived]
                impl #impl_generics #sdk::Failure for #name #type_generics #clause {
                    fn retry(&self) -> #sdk::RetryHint {
                        match #subject { #(#retry)* }
                    }

                    fn kind(&self) -> &str {
                        match #subject { #(#kind)* }
                    }

                    fn is_cancelled(&self) -> bool {
                        match #subject { #(#is_cancelled)* }
                    }

                    fn causes(&self) -> ::std::vec::Vec<::std::string::String> {
                        (&#sdk::__::Forward(self)).forward_causes()
                    }

                    fn nearest_cause(
                        &self,
                    ) -> ::core::option::Option<&(dyn ::std::error::Error + 'static)> {
                        (&#sdk::__::Forward(self)).forward_nearest()
                    }
                }
            };
        }
    }
}

impl Case {
    fn new(
        path: &TokenStream,
        kind: String,
        attrs: &[Attribute],
        fields: &Fields,
        options: &Options,
        faults: &mut Faults,
    ) -> Self {
        let mut bindings = TokenStream::new();
        for attr in fields.iter().flat_map(|field| &field.attrs) {
            if attr.path().is_ident("failure") {
                faults.at(attr, "`#[failure]` belongs on a variant or a struct, not on a field");
            }
        }
        let inner = wrapped(attrs, fields).map(|member| {
            let name = format_ident!("inner");
            bindings.extend(quote!(#member: #name,));
            name
        });
        let delay = options.retry_after.as_ref().and_then(|member| {
            let Some(field) = field(fields, member) else {
                faults.at(member, no_such_field(member, fields));
                return None;
            };
            // A delay of another type is an error at the field.
            let name = Ident::new("delay", field.ty.span());
            bindings.extend(quote!(#member: #name,));
            Some(Hint::After(name))
        });
        if let (Some(terminal), Some(_)) = (options.terminal, &options.retry_after) {
            faults.at_span(
                terminal,
                "`terminal` is never retried and `retry_after` is: keep one of them",
            );
        }
        let retry = match (options.terminal, delay, &inner) {
            (Some(_), _, _) => Hint::Never,
            (None, Some(after), _) => after,
            (None, None, Some(_)) => Hint::AsInner,
            (None, None, None) => Hint::Retry,
        };
        let kind = options.kind.as_ref().map_or(kind, LitStr::value);
        Self { pattern: quote!(#path { #bindings .. }), kind, retry, inner }
    }

    fn retry(&self, sdk: &Path) -> TokenStream {
        let Self { pattern, .. } = self;
        let hint = match &self.retry {
            Hint::Retry => quote!(#sdk::RetryHint::Retry),
            Hint::Never => quote!(#sdk::RetryHint::Never),
            Hint::After(delay) => {
                let delay = quote_spanned!(delay.span()=> *#delay);
                quote!(#sdk::RetryHint::After(#delay))
            }
            Hint::AsInner => {
                let inner = &self.inner;
                quote!((&#sdk::__::Forward(#inner)).forward_retry())
            }
        };
        quote!(#[allow(unused_variables)] #pattern => #hint,)
    }

    fn kind(&self) -> TokenStream {
        let Self { pattern, kind, .. } = self;
        quote!(#[allow(unused_variables)] #pattern => #kind,)
    }

    fn is_cancelled(&self, sdk: &Path) -> TokenStream {
        let Self { pattern, .. } = self;
        let answer = if let Some(inner) = &self.inner {
            quote!((&#sdk::__::Forward(#inner)).forward_is_cancelled())
        } else {
            quote!(false)
        };
        quote!(#[allow(unused_variables)] #pattern => #answer,)
    }
}

impl Options {
    fn parse(attrs: &[Attribute], known: &[&str], faults: &mut Faults) -> Self {
        let mut options = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("failure")) {
            let Some(list) = faults.keep(attr.meta.require_list()) else { continue };
            keys::each(list.tokens.clone(), known, faults, |key, input, _| {
                options.read(key, input)
            });
        }
        options
    }

    /// An enum as a whole is no case.
    fn refuse_on_enum(&self, faults: &mut Faults) {
        let places = [
            self.terminal.map(|span| ("terminal", span)),
            self.retry_after.as_ref().map(|member| ("retry_after", member.span())),
            self.kind.as_ref().map(|kind| ("kind", kind.span())),
        ];
        for (key, span) in places.into_iter().flatten() {
            faults.at_span(span, format!("`{key}` belongs on a variant of the enum"));
        }
    }

    fn read(&mut self, key: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        match key.to_string().as_str() {
            "terminal" => self.terminal = Some(key.span()),
            "retry_after" => self.retry_after = Some(member(input)?),
            "kind" => self.kind = Some(kind(input)?),
            _ => {
                input.parse::<Token![=]>()?;
                self.sdk = Some(input.call(Path::parse_mod_style)?);
            }
        }
        Ok(())
    }
}

/// A field by name, or by its place: `retry_after = 0`.
fn member(input: ParseStream<'_>) -> syn::Result<Member> {
    input.parse::<Token![=]>()?;
    if input.peek(LitInt) || input.peek(syn::Ident) {
        input.parse()
    } else {
        Err(input.error("expected the name of the field that holds the delay"))
    }
}

fn kind(input: ParseStream<'_>) -> syn::Result<LitStr> {
    let literal: LitStr = keys::value(input)?;
    if literal.value().is_empty() {
        return Err(syn::Error::new(literal.span(), "a kind cannot be empty"));
    }
    Ok(literal)
}

fn field<'a>(fields: &'a Fields, member: &Member) -> Option<&'a Field> {
    match member {
        Member::Named(name) => fields.iter().find(|field| field.ident.as_ref() == Some(name)),
        Member::Unnamed(index) if !matches!(fields, Fields::Named(_)) => {
            fields.iter().nth(index.index as usize)
        }
        Member::Unnamed(_) => None,
    }
}

fn no_such_field(member: &Member, fields: &Fields) -> String {
    let names: Vec<String> =
        fields.members().map(|member| format!("`{}`", member.to_token_stream())).collect();
    let member = member.to_token_stream();
    if names.is_empty() {
        format!("there is no field `{member}`: the delay is a field of type `Duration`")
    } else {
        format!("there is no field `{member}`, only {}", names.join(", "))
    }
}

/// The field whose failure this case only carries on: the one marked `#[from]`, or the only one
/// of an `#[error(transparent)]`.
fn wrapped(attrs: &[Attribute], fields: &Fields) -> Option<Member> {
    let is_from = |field: &Field| field.attrs.iter().any(|attr| attr.path().is_ident("from"));
    let is_transparent = attrs.iter().any(|attr| {
        attr.path().is_ident("error")
            && attr.parse_args::<syn::Ident>().is_ok_and(|ident| ident == "transparent")
    });
    fields
        .members()
        .zip(fields.iter())
        .find(|(_, field)| is_from(field) || is_transparent && !is_backtrace(&field.ty))
        .map(|(member, _)| member)
}

fn is_backtrace(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Backtrace"))
}
