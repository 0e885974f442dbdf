//! `#[workflow]`.

use crate::{
    caller,
    fault::Faults,
    function::{Function, Kind},
    lint,
    options::WorkflowOptions,
};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::spanned::Spanned as _;

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut faults = Faults::default();
    let options = WorkflowOptions::parse(args, &mut faults);
    let item = match Function::parse(item.clone(), Kind::Workflow, &mut faults) {
        Some(function) => {
            let warnings = lint::check(&function, &mut faults);
            Workflow { function, options, warnings }.into_tokens()
        }
        None => item,
    };
    faults.before(item)
}

struct Workflow {
    function: Function,
    options: WorkflowOptions,
    /// Items that make the compiler warn about doubtful places of the body.
    warnings: TokenStream,
}

impl Workflow {
    fn into_tokens(self) -> TokenStream {
        let Self { function, options, warnings } = self;
        let naming = &options.naming;
        let sdk = &naming.sdk;
        let marker = naming.marker.as_ref().unwrap_or(&function.sig.ident);
        let name = match &naming.name {
            Some(name) => name.to_token_stream(),
            None => function.plain_name().to_token_stream(),
        };
        let target = Ident::new("WorkflowTarget", Span::call_site());
        let caller = caller::expand(&function, marker, sdk, &target);
        let cfgs = caller::cfgs(&function.attrs);
        let (inner, call) = caller::inner(&function);
        let args = caller::owned_types(&function);
        let on_panic = options
            .fails_on_panic
            .then(|| quote!(const ON_PANIC: #sdk::OnPanic = #sdk::OnPanic::Fail;));
        let ret = &function.output;
        let output = quote_spanned!(ret.span()=> <#ret as #sdk::__::ActivityReturn>::Output);
        let error = quote_spanned!(ret.span()=> <#ret as #sdk::__::ActivityReturn>::Error);
        quote! {
            #caller

            #(#cfgs)*
            const _: () = {
                #inner

                #warnings

                impl #sdk::Workflow for #marker {
                    const NAME: &'static str = #name;
                    #on_panic
                    type Args = #args;
                    type Output = #output;
                    type Error = #error;

                    async fn run(
                        ctx: &#sdk::Ctx,
                        args: Self::Args,
                    ) -> ::core::result::Result<Self::Output, Self::Error> {
                        #call.await
                    }
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::assert_expands_to;

    #[test]
    fn a_workflow_and_the_warning_about_its_body() {
        let item = quote! {
            /// Ships an order.
            pub(crate) async fn ship(ctx: &Ctx, order: Order, names: &[String]) -> Result<Parcel, ShipError> {
                let stock: HashMap<String, u64> = stock(ctx, names).await?;
                for (item, count) in &stock {
                    reserve(ctx, item, *count).await?;
                }
                Ok(Parcel::of(order))
            }
        };
        assert_expands_to(expand(TokenStream::new(), item), "workflow");
    }
}
