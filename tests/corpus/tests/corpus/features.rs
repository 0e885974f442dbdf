//! Whether the workflows of the corpus use all that the SDK offers to workflow code. What there is
//! is read from the SDK's sources, so what is new there is missing here until a workflow uses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use onward_corpus::histories;
use onward_proto::v1::history_event::Attributes;
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{
    Attribute, Expr, ExprCall, ExprMethodCall, FnArg, ImplItem, Item, ItemConst, ItemFn, Local,
    Macro, Pat, ReturnType, Token, Type, UseTree, Visibility,
    parse::{ParseStream, Parser as _},
    punctuated::Punctuated,
    visit::{self, Visit},
};

/// What is public for others than workflow code.
const NOT_FOR_WORKFLOWS: &[(&str, &str)] = &[
    ("ActivityCtx::test", "it is for unit tests"),
    ("ActivityOptions::or", "the SDK merges the layers"),
    ("ActivityOptions::start_to_close", "the SDK reads it"),
    ("ActivityOptions::schedule_to_close", "the SDK reads it"),
    ("ActivityOptions::retry_policy", "the SDK reads it"),
    ("Retry::allowed_attempts", "the SDK reads it"),
    ("Retry::rules_out", "the SDK reads it"),
    ("Retry::delay_after", "the SDK reads it"),
    ("#crate", "it says where the SDK is found"),
];

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn parse(path: &Path) -> syn::File {
    syn::parse_file(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &str) -> Vec<syn::File> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(source(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "rs"));
    paths.sort();
    paths.iter().map(|path| parse(path)).collect()
}

// ------------------------------------------------------------------------------- what there is

/// Public functions of the SDK by type and name, with the type that each gives.
#[derive(Default)]
struct Offer {
    gives: BTreeMap<String, Option<String>>,
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("hidden") || text.contains("cfg (test)")
    })
}

/// The last name of a type, without its references and parameters.
fn name_of(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        Type::Reference(reference) => name_of(&reference.elem),
        _ => None,
    }
}

impl Offer {
    /// The public methods of the public types of a file.
    fn add_types(&mut self, file: &syn::File, exported: &BTreeSet<String>) {
        for item in &file.items {
            let Item::Impl(item) = item else { continue };
            let Some(of) = name_of(&item.self_ty).filter(|name| exported.contains(name)) else {
                continue;
            };
            if item.trait_.is_some() {
                continue;
            }
            for item in &item.items {
                if let ImplItem::Fn(function) = item
                    && matches!(function.vis, Visibility::Public(_))
                    && !is_hidden(&function.attrs)
                {
                    let gives = match &function.sig.output {
                        ReturnType::Type(_, given) => name_of(given),
                        ReturnType::Default => None,
                    };
                    let gives = gives.map(|it| if it == "Self" { of.clone() } else { it });
                    self.gives.insert(format!("{of}::{}", function.sig.ident), gives);
                }
            }
        }
    }

    /// The free functions and macros of a module.
    fn add_module(&mut self, file: &syn::File, module: &str) {
        let mut names = BTreeSet::new();
        for item in &file.items {
            match item {
                Item::Fn(function) if matches!(function.vis, Visibility::Public(_)) => {
                    names.insert(function.sig.ident.to_string());
                }
                Item::Use(item) if matches!(item.vis, Visibility::Public(_)) => {
                    add_names(&item.tree, &mut names);
                }
                _ => {}
            }
        }
        self.gives.extend(names.into_iter().map(|name| (format!("{module}::{name}"), None)));
    }
}

/// The names that a `use` gives.
fn add_names(tree: &UseTree, names: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => add_names(&path.tree, names),
        UseTree::Name(name) => drop(names.insert(name.ident.to_string())),
        UseTree::Rename(rename) => drop(names.insert(rename.rename.to_string())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| add_names(tree, names)),
        UseTree::Glob(_) => panic!("what a glob gives is not to be seen here"),
    }
}

fn offer() -> Offer {
    let mut exported = BTreeSet::new();
    for item in &parse(&source("sdk/src/lib.rs")).items {
        if let Item::Use(item) = item {
            add_names(&item.tree, &mut exported);
        }
    }
    let mut offer = Offer::default();
    for file in files("sdk/src/workflow") {
        offer.add_types(&file, &exported);
    }
    for path in ["sdk/src/activity/mod.rs", "sdk/src/options.rs"] {
        offer.add_types(&parse(&source(path)), &exported);
    }
    offer.add_module(&parse(&source("sdk/src/workflow/wf.rs")), "wf");
    offer
}

/// The keys of the SDK's attributes, each behind a `#`.
fn keys() -> BTreeSet<String> {
    struct Keys(BTreeSet<String>);
    impl Keys {
        fn take(&mut self, name: &syn::Ident, value: &Expr) {
            if !name.to_string().ends_with("KEYS") {
                return;
            }
            let literals = value.to_token_stream().to_string();
            self.0.extend(literals.split('"').skip(1).step_by(2).map(|key| format!("#{key}")));
        }
    }
    impl<'ast> Visit<'ast> for Keys {
        fn visit_item_const(&mut self, item: &'ast ItemConst) {
            self.take(&item.ident, &item.expr);
        }

        fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
            self.take(&item.ident, &item.expr);
        }
    }
    let mut keys = Keys(BTreeSet::new());
    for path in ["macros/src/options.rs", "macros/src/failure.rs"] {
        keys.visit_file(&parse(&source(path)));
    }
    keys.0
}

// ---------------------------------------------------------------------------------- what is used

/// What the corpus uses of the offer.
struct Used<'a> {
    offer: &'a Offer,
    names: BTreeSet<String>,
    /// The types of what has a name here.
    types: BTreeMap<String, String>,
}

/// The parts of `select!`: a pattern, a future and a body each.
fn arms(input: ParseStream<'_>) -> syn::Result<Vec<Expr>> {
    let mut parts = Vec::new();
    while !input.is_empty() {
        Pat::parse_multi(input)?;
        input.parse::<Token![=]>()?;
        parts.push(input.parse()?);
        input.parse::<Token![=>]>()?;
        parts.push(Expr::parse_with_earlier_boundary_rule(input)?);
        input.parse::<Option<Token![,]>>()?;
    }
    Ok(parts)
}

impl Used<'_> {
    fn take(&mut self, of: &str, name: &str) -> Option<String> {
        let what = format!("{of}::{name}");
        let gives = self.offer.gives.get(&what)?.clone();
        self.names.insert(what);
        gives
    }

    /// The type of the SDK that an expression has, if it has one.
    fn type_of(&mut self, expression: &Expr) -> Option<String> {
        match expression {
            Expr::Path(path) => self.types.get(&path.path.get_ident()?.to_string()).cloned(),
            Expr::Reference(reference) => self.type_of(&reference.expr),
            Expr::Paren(paren) => self.type_of(&paren.expr),
            Expr::MethodCall(call) => {
                let of = self.type_of(&call.receiver)?;
                self.take(&of, &call.method.to_string())
            }
            Expr::Call(call) => self.type_of_call(call),
            _ => None,
        }
    }

    fn type_of_call(&mut self, call: &ExprCall) -> Option<String> {
        let Expr::Path(function) = &*call.func else { return None };
        let names: Vec<String> =
            function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let [.., of, name] = &names[..]
            && self.offer.gives.contains_key(&format!("{of}::{name}"))
        {
            return self.take(of, name);
        }
        // The first argument says where it runs.
        let target = match self.type_of(call.args.first()?)?.as_str() {
            "Ctx" => "Call",
            "LocalCtx" => "LocalCall",
            "ActivityCtx" => "DirectCall",
            _ => return None,
        };
        Some(target.to_owned())
    }

    fn keys_in(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Ident(key) => drop(self.names.insert(format!("#{key}"))),
                TokenTree::Group(group) => self.keys_in(group.stream()),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Used<'_> {
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let ours = ["activity", "workflow", "failure"];
        if ours.iter().any(|name| attribute.path().is_ident(name))
            && let Ok(list) = attribute.meta.require_list()
        {
            self.keys_in(list.tokens.clone());
        }
    }

    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        if let Some(of) = name_of(&item.ty) {
            self.types.insert(item.ident.to_string(), of);
        }
        visit::visit_item_const(self, item);
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        for argument in &function.sig.inputs {
            if let FnArg::Typed(argument) = argument
                && let Pat::Ident(name) = &*argument.pat
                && let Some(of) = name_of(&argument.ty)
            {
                self.types.insert(name.ident.to_string(), of);
            }
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_local(&mut self, local: &'ast Local) {
        let (name, given) = match &local.pat {
            Pat::Ident(name) => (Some(&name.ident), None),
            Pat::Type(typed) => match &*typed.pat {
                Pat::Ident(name) => (Some(&name.ident), name_of(&typed.ty)),
                _ => (None, None),
            },
            _ => (None, None),
        };
        let init = local.init.as_ref().and_then(|init| self.type_of(&init.expr));
        if let (Some(name), Some(of)) = (name, given.or(init)) {
            self.types.insert(name.to_string(), of);
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if let Some(of) = self.type_of(&call.receiver) {
            self.take(&of, &call.method.to_string());
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        self.type_of_call(call);
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, used: &'ast Macro) {
        let names: Vec<String> =
            used.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let [.., of, name] = &names[..] {
            self.take(of, name);
        }
        let list = Punctuated::<Expr, Token![,]>::parse_terminated;
        let parts = if names.last().is_some_and(|name| name == "select") {
            arms.parse2(used.tokens.clone()).unwrap_or_else(|error| panic!("{error}"))
        } else {
            // What is no list of expressions is no macro of ours.
            list.parse2(used.tokens.clone()).into_iter().flatten().collect()
        };
        for part in &parts {
            self.visit_expr(part);
        }
    }
}

fn used(offer: &Offer) -> BTreeSet<String> {
    let mut used = Used { offer, names: BTreeSet::new(), types: BTreeMap::new() };
    for file in files("tests/corpus/src") {
        used.types.clear();
        used.visit_file(&file);
    }
    used.names
}

/// What is offered and neither used nor for others.
fn missing(there_is: BTreeSet<String>, used: &BTreeSet<String>) -> Vec<String> {
    for (name, why) in NOT_FOR_WORKFLOWS {
        assert!(there_is.contains(*name), "{name} is gone from the SDK");
        assert!(!used.contains(*name), "{name} is used, though {why}");
    }
    let is_for_workflows = |name: &String| NOT_FOR_WORKFLOWS.iter().all(|(not, _)| not != name);
    there_is.into_iter().filter(|name| !used.contains(name)).filter(is_for_workflows).collect()
}

#[test]
fn everything_that_the_sdk_offers_to_workflows_is_used() {
    let offer = offer();
    let mut there_is: BTreeSet<String> = offer.gives.keys().cloned().collect();
    there_is.extend(keys());
    for known in
        ["Ctx::sleep", "Call::detach", "wf::select", "wf::race", "#backoff", "#retry_after"]
    {
        assert!(there_is.contains(known), "the SDK's sources are not read as they should: {known}");
    }
    assert!(there_is.len() > 90, "that is not our SDK: {there_is:?}");
    assert_eq!(missing(there_is, &used(&offer)), [""; 0], "no workflow of the corpus uses it");
}

#[test]
fn what_no_workflow_uses_is_named() {
    let mut offer = offer();
    offer.gives.insert("Ctx::teleport".to_owned(), None);
    offer.gives.insert("LocalCall::summary".to_owned(), None);
    let mut there_is: BTreeSet<String> = offer.gives.keys().cloned().collect();
    there_is.extend(keys());
    // A method of the same name on another type is not it.
    assert_eq!(missing(there_is, &used(&offer)), ["Ctx::teleport", "LocalCall::summary"]);
}

/// Workflows tell what they saw by the names of the error's variants.
#[test]
fn every_error_of_a_call_was_seen_by_a_workflow() {
    let error = parse(&source("sdk/src/error.rs"));
    let variants = error.items.iter().find_map(|item| match item {
        Item::Enum(item) if item.ident == "ActivityError" => Some(&item.variants),
        _ => None,
    });
    let mut results = String::new();
    for (_, history) in histories() {
        let last = history.events.last().and_then(|event| event.attributes.as_ref());
        if let Some(Attributes::WorkflowExecutionCompleted(completed)) = last {
            let result = &completed.result.as_ref().unwrap().data;
            results.push_str(&String::from_utf8_lossy(result));
        }
    }
    let names: Vec<String> =
        variants.unwrap().iter().map(|variant| variant.ident.to_string()).collect();
    assert!(names.len() >= 7, "{names:?}");
    let unseen: Vec<&String> =
        names.iter().filter(|name| !results.contains(&format!("\"{name}\""))).collect();
    assert!(unseen.is_empty(), "no result tells of {unseen:?}");
}
