//! The user's function: what every attribute of this crate asks of it, and the parts it is made
//! of.

use crate::fault::Faults;
use proc_macro2::{Group, Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, FnArg, GenericParam, Lifetime, Pat, PatType, ReturnType, Signature, Token, Type,
    TypeImplTrait, TypePath, TypeReference, Visibility,
    ext::IdentExt as _,
    parse::{ParseStream, Parser as _},
    visit::{self, Visit},
};

/// The longest list of arguments that is a serde tuple.
const MOST_PARAMETERS: usize = 12;

/// What the function becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Activity,
    Workflow,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Activity => "activity",
            Self::Workflow => "workflow",
        }
    }

    fn article(self) -> &'static str {
        match self {
            Self::Activity => "an activity",
            Self::Workflow => "a workflow",
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Activity => "activities",
            Self::Workflow => "workflows",
        }
    }

    fn context(self) -> &'static str {
        match self {
            Self::Activity => "ctx: &ActivityCtx",
            Self::Workflow => "ctx: &Ctx",
        }
    }
}

/// A function that has passed every check.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// As written, never parsed: the compiler reads it with the user's own spans, and half a body
    /// keeps its completions while it is typed.
    pub(crate) body: Group,
    pub(crate) context: Context,
    pub(crate) params: Vec<Param>,
    pub(crate) output: Type,
}

/// The first parameter.
pub(crate) struct Context {
    /// Its name in the caller's signature.
    pub(crate) name: Ident,
    /// What stands behind the `&`.
    pub(crate) ty: Type,
}

/// A parameter after the context.
pub(crate) struct Param {
    /// Its name in the caller's signature.
    pub(crate) name: Ident,
    /// As the user wrote it.
    pub(crate) ty: Type,
    pub(crate) passing: Passing,
}

/// How a parameter gets from the caller to the body.
pub(crate) enum Passing {
    ByValue,
    /// The caller lends, the body borrows from what was decoded.
    ByReference(Box<Type>),
}

impl Function {
    /// Reads the item; `None` when it cannot become what `kind` says, with the reasons in
    /// `faults`.
    pub(crate) fn parse(item: TokenStream, kind: Kind, faults: &mut Faults) -> Option<Self> {
        let item = faults.keep(Item::parse(item, kind))?;
        let mut found = Faults::default();
        let function = check(item, kind, &mut found).filter(|_| found.is_empty());
        faults.join(found);
        function
    }

    /// The name without the `r#` of a raw identifier.
    pub(crate) fn plain_name(&self) -> String {
        self.sig.ident.unraw().to_string()
    }
}

/// A function as it was written.
struct Item {
    attrs: Vec<Attribute>,
    vis: Visibility,
    sig: Signature,
    body: Group,
}

impl Item {
    fn parse(item: TokenStream, kind: Kind) -> syn::Result<Self> {
        let attribute = kind.noun();
        (|input: ParseStream<'_>| {
            let attrs = input.call(Attribute::parse_outer)?;
            let vis: Visibility = input.parse()?;
            if !is_function(input) {
                let message = format!(
                    "`#[{attribute}]` belongs on an async function: \
                     `async fn name({}) -> onward::Result<()>`",
                    kind.context()
                );
                return Err(syn::Error::new(Span::call_site(), message));
            }
            let sig: Signature = input.parse()?;
            if input.peek(Token![;]) {
                let message = format!("{} needs a body", kind.article());
                return Err(input.error(message));
            }
            Ok(Self { attrs, vis, sig, body: input.parse()? })
        })
        .parse2(item)
    }
}

fn is_function(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    loop {
        if ahead.peek(Token![fn]) {
            return true;
        }
        let qualifier = ahead.peek(Token![const])
            || ahead.peek(Token![async])
            || ahead.peek(Token![unsafe])
            || ahead.peek(Token![extern])
            || ahead.peek(syn::LitStr);
        if !qualifier || ahead.parse::<proc_macro2::TokenTree>().is_err() {
            return false;
        }
    }
}

fn check(item: Item, kind: Kind, faults: &mut Faults) -> Option<Function> {
    let Item { attrs, vis, sig, body } = item;
    check_qualifiers(&sig, kind, faults);
    check_generics(&sig, kind, faults);
    let output = check_output(&sig, kind, faults);

    let mut inputs = sig.inputs.iter();
    let context = match inputs.next() {
        None => {
            let message =
                format!("{} takes its context first: add `{}`", kind.article(), kind.context());
            faults.at_span(sig.paren_token.span.join(), message);
            None
        }
        Some(FnArg::Receiver(receiver)) => {
            let message = format!(
                "{} is a free function and has no `self`; what it works with comes through its \
                 context: `{}`",
                kind.article(),
                match kind {
                    Kind::Activity => "ctx: &ActivityCtx<App>",
                    Kind::Workflow => kind.context(),
                }
            );
            faults.at(receiver, message);
            return None;
        }
        Some(FnArg::Typed(first)) => check_context(first, &sig, kind, faults),
    };
    let mut params = Vec::new();
    for (index, input) in inputs.enumerate() {
        let FnArg::Typed(input) = input else { continue };
        if context.is_some()
            && let Some(param) = check_param(input, index, kind, faults)
        {
            params.push(param);
        }
    }
    if params.len() > MOST_PARAMETERS {
        faults.at(
            &sig.inputs,
            format!(
                "{} takes at most {MOST_PARAMETERS} parameters; put some of them in a struct",
                kind.article()
            ),
        );
    }
    let (mut context, output) = (context?, output?);
    keep_names_apart(&mut context, &mut params);
    Some(Function { attrs, vis, sig, body, context, params, output })
}

fn check_qualifiers(sig: &Signature, kind: Kind, faults: &mut Faults) {
    if sig.asyncness.is_none() {
        faults.at(
            sig.fn_token,
            format!("{} is async: write `async fn {}`", kind.article(), sig.ident),
        );
    }
    if let Some(constness) = &sig.constness {
        faults.at(constness, format!("{} cannot be `const`", kind.article()));
    }
    if let syn::Safety::Unsafe(unsafety) = &sig.safety {
        faults.at(
            unsafety,
            format!("{} cannot be `unsafe`: the worker calls it as it comes", kind.article()),
        );
    }
    if let Some(abi) = &sig.abi {
        faults.at(abi, format!("{} cannot be `extern`", kind.article()));
    }
    if let Some(variadic) = &sig.variadic {
        faults.at(variadic, format!("{} cannot be variadic", kind.article()));
    }
}

fn check_generics(sig: &Signature, kind: Kind, faults: &mut Faults) {
    let named = sig.generics.params.iter().any(|param| !matches!(param, GenericParam::Lifetime(_)));
    if named {
        faults.at(
            &sig.generics,
            format!(
                "{} cannot be generic: the server finds {} by name, and generics have none; \
                 write one {} for each type",
                kind.article(),
                kind.plural(),
                kind.noun()
            ),
        );
    } else if !sig.generics.params.is_empty() {
        faults.at(
            &sig.generics,
            format!(
                "{} has no lifetimes of its own: leave them out, references are elided",
                kind.article()
            ),
        );
    } else if let Some(clause) = &sig.generics.where_clause {
        faults.at(clause, format!("{} cannot have a `where` clause", kind.article()));
    }
}

fn check_output(sig: &Signature, kind: Kind, faults: &mut Faults) -> Option<Type> {
    let message = format!(
        "{} returns a `Result`: its failure is recorded and decides over retries; write \
         `-> onward::Result<{}>`",
        kind.article(),
        match &sig.output {
            ReturnType::Type(_, ty) if is_plain(ty) => ty.to_token_stream().to_string(),
            _ => "()".to_owned(),
        }
    );
    match &sig.output {
        ReturnType::Default => faults.at(&sig.ident, message),
        ReturnType::Type(_, ty) if is_plain(ty) || matches!(**ty, Type::Never(_)) => {
            faults.at(ty, message);
        }
        ReturnType::Type(_, ty) => {
            let mut finder = Borrows::default();
            finder.visit_type(ty);
            if let Some(generic) = finder.generic {
                faults.add(syn::Error::new_spanned(
                    generic,
                    "`impl Trait` cannot be recorded: name the type",
                ));
            } else if let Some(borrow) = finder.borrow {
                faults.add(syn::Error::new_spanned(
                    borrow,
                    "a result is recorded and decoded again, so it cannot borrow: return the owned \
                     type",
                ));
            } else {
                return Some((**ty).clone());
            }
        }
    }
    None
}

/// Types that are no `Result`, whatever is in scope. Other types are for the compiler to judge,
/// as only it knows what an alias means.
fn is_plain(ty: &Type) -> bool {
    const PRIMITIVES: &[&str] = &[
        "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32",
        "i64", "i128", "isize", "f32", "f64", "String", "Vec", "Option",
    ];
    match bare(ty) {
        Type::Tuple(_) | Type::Array(_) | Type::Slice(_) => true,
        Type::Path(TypePath { qself: None, path, .. }) => path
            .segments
            .last()
            .is_some_and(|last| PRIMITIVES.iter().any(|primitive| last.ident == primitive)),
        _ => false,
    }
}

fn check_context(
    first: &PatType,
    sig: &Signature,
    kind: Kind,
    faults: &mut Faults,
) -> Option<Context> {
    let rest = sig.inputs.iter().skip(1);
    let later = rest.filter_map(|input| match input {
        FnArg::Typed(input) if looks_like_context(&input.ty) => Some(input),
        _ => None,
    });
    if !looks_like_context(&first.ty)
        && let Some(late) = later.into_iter().next()
    {
        faults.at(late, "the context comes first: move it before the other parameters");
        return None;
    }
    match bare(&first.ty) {
        Type::Reference(reference) if reference.mutability.is_some() => {
            let message = "the context is shared: write `&` for `&mut`";
            faults.at(&first.ty, message);
            None
        }
        Type::Reference(TypeReference { elem, .. })
            if kind == Kind::Workflow && last_segment(elem).is_some_and(|l| l == "ActivityCtx") =>
        {
            faults.at(&first.ty, "the context of a workflow is `&Ctx`");
            None
        }
        Type::Reference(TypeReference { elem, .. }) if is_plain(elem) => {
            faults.at(
                first,
                format!("{} takes its context first: add `{}`", kind.article(), kind.context()),
            );
            None
        }
        Type::Reference(reference) => Some(Context {
            name: plain_name(&first.pat).unwrap_or_else(|| format_ident!("ctx")),
            ty: (*reference.elem).clone(),
        }),
        ty if looks_like_context(ty) => {
            faults.at(ty, format!("the context is borrowed: write `{}`", kind.context()));
            None
        }
        _ => {
            faults.at(
                first,
                format!("{} takes its context first: add `{}`", kind.article(), kind.context()),
            );
            None
        }
    }
}

/// Whether the type is spelled like a context. Serves messages about code that is wrong anyway;
/// whether code is right, the compiler says.
fn looks_like_context(ty: &Type) -> bool {
    let behind = match bare(ty) {
        Type::Reference(reference) => &*reference.elem,
        ty => ty,
    };
    last_segment(behind).is_some_and(|ident| ident == "ActivityCtx" || ident == "Ctx")
}

fn last_segment(ty: &Type) -> Option<&Ident> {
    match bare(ty) {
        Type::Path(TypePath { path, .. }) => path.segments.last().map(|last| &last.ident),
        _ => None,
    }
}

fn check_param(input: &PatType, index: usize, kind: Kind, faults: &mut Faults) -> Option<Param> {
    let name = plain_name(&input.pat).unwrap_or_else(|| format_ident!("arg{index}"));
    let ty = (*input.ty).clone();
    let (inner, passing) = match bare(&ty) {
        Type::Reference(reference) => {
            if let Some(mutability) = &reference.mutability {
                let (and, elem) = (reference.and_token, &reference.elem);
                faults.at(
                    quote!(#and #mutability #elem),
                    format!(
                        "{} works on a copy of its arguments, so changes would be lost: take \
                         `{name}` by value or by `&` and return what changed",
                        kind.article()
                    ),
                );
                return None;
            }
            if let Some(lifetime) = &reference.lifetime
                && lifetime.ident == "static"
            {
                faults.at(lifetime, "arguments live as long as the call: leave the lifetime out");
                return None;
            }
            ((*reference.elem).clone(), Passing::ByReference(reference.elem.clone()))
        }
        ty => (ty.clone(), Passing::ByValue),
    };
    let mut finder = Borrows::default();
    finder.visit_type(&inner);
    if let Some(generic) = finder.generic {
        faults.at(
            generic,
            format!(
                "`impl Trait` makes {} generic: the server finds {} by name, and generics have \
                 none; name the type",
                kind.article(),
                kind.plural()
            ),
        );
        return None;
    }
    if let Some(borrow) = finder.borrow {
        faults.at(
            borrow,
            format!(
                "arguments are decoded to owned values, so a parameter borrows as a whole or not \
                 at all: `&T` is fine, a reference inside of a type is not; take `{name}` by its \
                 owned type"
            ),
        );
        return None;
    }
    Some(Param { name, ty, passing })
}

/// Without the invisible brackets that a `macro_rules!` puts around a type.
fn bare(mut ty: &Type) -> &Type {
    while let Type::Group(syn::TypeGroup { elem, .. }) | Type::Paren(syn::TypeParen { elem, .. }) =
        ty
    {
        ty = elem;
    }
    ty
}

fn plain_name(pat: &Pat) -> Option<Ident> {
    match pat {
        Pat::Ident(pat) => Some(pat.ident.clone()),
        _ => None,
    }
}

/// Parameters without a name of their own (`_`, `(a, b)`) got made-up ones; no two may be the
/// same in the caller's signature.
fn keep_names_apart(context: &mut Context, params: &mut [Param]) {
    while params.iter().any(|param| param.name == context.name) {
        context.name = format_ident!("{}_", context.name);
    }
    for index in 1..params.len() {
        let (before, rest) = params.split_at_mut(index);
        while before.iter().any(|param| param.name == rest[0].name) {
            rest[0].name = format_ident!("{}_", rest[0].name);
        }
    }
}

/// The first borrow and the first `impl Trait` in a type.
#[derive(Default)]
struct Borrows {
    borrow: Option<TokenStream>,
    generic: Option<TokenStream>,
}

impl<'ast> Visit<'ast> for Borrows {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        self.borrow.get_or_insert_with(|| reference.to_token_stream());
        visit::visit_type(self, &reference.elem);
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            self.borrow.get_or_insert_with(|| lifetime.to_token_stream());
        }
    }

    fn visit_type_impl_trait(&mut self, found: &'ast TypeImplTrait) {
        self.generic.get_or_insert_with(|| found.to_token_stream());
    }
}
