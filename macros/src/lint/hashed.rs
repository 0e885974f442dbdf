//! Iteration in hash order: the order of a `HashMap` differs from process to process, and so from
//! replay to replay.

use super::warning;
use crate::function::Function;
use proc_macro2::TokenStream;
use quote::ToTokens as _;
use std::collections::BTreeMap;
use syn::{
    Block, Expr, ExprForLoop, ExprMethodCall, FnArg, Ident, Local, Pat, Type,
    visit::{self, Visit},
};

/// Items that warn at each iteration over a local that the text shows to be hashed. Nothing for a
/// body that does not parse: the compiler will say more about it.
pub(super) fn warnings(function: &Function) -> TokenStream {
    let Ok(body) = syn::parse2::<Block>(function.body.to_token_stream()) else {
        return TokenStream::new();
    };
    let mut search = Search::default();
    for input in &function.sig.inputs {
        if let FnArg::Typed(input) = input {
            search.bind(&input.pat, hashed_type(&input.ty));
        }
    }
    search.visit_block(&body);
    search.found
}

#[derive(Default)]
struct Search {
    /// The locals in sight, with the hashed type that those have which have one.
    locals: BTreeMap<String, Option<&'static str>>,
    found: TokenStream,
}

impl Search {
    fn bind(&mut self, pat: &Pat, hashed: Option<&'static str>) {
        if let Pat::Ident(pat) = pat {
            self.locals.insert(pat.ident.to_string(), hashed);
        }
    }

    fn hashed(&self, expr: &Expr) -> Option<&'static str> {
        match expr {
            Expr::Reference(reference) => self.hashed(&reference.expr),
            Expr::Paren(paren) => self.hashed(&paren.expr),
            Expr::Path(path) => {
                let name = path.path.get_ident()?;
                self.locals.get(&name.to_string()).copied().flatten()
            }
            _ => None,
        }
    }

    fn warn(&mut self, hashed: &str, place: &Expr) {
        let note = format!(
            "the order of a `{hashed}` differs on replay: use a `{}`, or sort first",
            hashed.replace("Hash", "BTree")
        );
        self.found.extend(warning(&note, &place.to_token_stream()));
    }
}

impl<'ast> Visit<'ast> for Search {
    /// Names bound in a block are out of sight after it.
    fn visit_block(&mut self, block: &'ast Block) {
        let outside = self.locals.clone();
        visit::visit_block(self, block);
        self.locals = outside;
    }

    fn visit_local(&mut self, local: &'ast Local) {
        visit::visit_local(self, local);
        match &local.pat {
            Pat::Type(typed) => self.bind(&typed.pat, hashed_type(&typed.ty)),
            pat => {
                let hashed = local.init.as_ref().and_then(|init| constructed(&init.expr));
                self.bind(pat, hashed);
            }
        }
    }

    fn visit_expr_for_loop(&mut self, for_loop: &'ast ExprForLoop) {
        if let Some(hashed) = self.hashed(&for_loop.expr) {
            self.warn(hashed, &for_loop.expr);
        }
        visit::visit_expr_for_loop(self, for_loop);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        const ITERATIONS: &[&str] = &[
            "iter",
            "iter_mut",
            "into_iter",
            "keys",
            "into_keys",
            "values",
            "values_mut",
            "into_values",
            "drain",
            "retain",
            "extract_if",
        ];
        // What is recorded may differ on replay.
        if call.method == "record" {
            self.visit_expr(&call.receiver);
            return;
        }
        if ITERATIONS.iter().any(|name| call.method == name)
            && let Some(hashed) = self.hashed(&call.receiver)
        {
            self.warn(hashed, &call.receiver);
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn hashed_type(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Reference(reference) => hashed_type(&reference.elem),
        Type::Path(path) => hashed_name(&path.path.segments.last()?.ident),
        _ => None,
    }
}

/// `HashMap::new()` and the like.
fn constructed(expr: &Expr) -> Option<&'static str> {
    match expr {
        Expr::Call(call) => match &*call.func {
            Expr::Path(path) => {
                let mut segments = path.path.segments.iter().rev();
                segments.next()?;
                hashed_name(&segments.next()?.ident)
            }
            _ => None,
        },
        _ => None,
    }
}

fn hashed_name(ident: &Ident) -> Option<&'static str> {
    ["HashMap", "HashSet"].into_iter().find(|name| ident == name)
}
