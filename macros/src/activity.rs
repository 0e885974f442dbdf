//! `#[activity]`.

use crate::{
    caller,
    fault::Faults,
    function::{Function, Kind},
    options::ActivityOptions,
};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::spanned::Spanned as _;

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut faults = Faults::default();
    // A mistake in the options leaves a whole definition, so that its callers are not in error too.
    let options = ActivityOptions::parse(args, &mut faults);
    let item = match Function::parse(item.clone(), Kind::Activity, &mut faults) {
        Some(function) => Activity { function, options }.into_tokens(),
        None => item,
    };
    faults.before(item)
}

struct Activity {
    function: Function,
    options: ActivityOptions,
}

impl Activity {
    fn into_tokens(self) -> TokenStream {
        let Self { function, options: ActivityOptions { naming, defaults } } = self;
        let sdk = &naming.sdk;
        let marker = naming.marker.as_ref().unwrap_or(&function.sig.ident);
        let name = match &naming.name {
            Some(name) => name.to_token_stream(),
            None => function.plain_name().to_token_stream(),
        };
        let target = Ident::new("ActivityTarget", Span::call_site());
        let caller = caller::expand(&function, marker, sdk, &target);
        let cfgs = caller::cfgs(&function.attrs);
        let (inner, call) = caller::inner(&function);
        let args = caller::owned_types(&function);
        let ctx = &function.context.ty;
        let ret = &function.output;
        let deps = quote_spanned!(ctx.span()=> <#ctx as #sdk::__::CtxParam>::Deps);
        let output = quote_spanned!(ret.span()=> <#ret as #sdk::__::ActivityReturn>::Output);
        let error = quote_spanned!(ret.span()=> <#ret as #sdk::__::ActivityReturn>::Error);
        let defaults = defaults.into_tokens(sdk);
        let provider = caller::generic_name("D", marker, &[]);
        quote! {
            #caller

            #(#cfgs)*
            const _: () = {
                #inner

                impl #sdk::Activity for #marker {
                    const NAME: &'static str = #name;
                    const DEFAULTS: #sdk::ActivityOptions = #defaults;
                    type Args = #args;
                    type Deps = #deps;
                    type Output = #output;
                    type Error = #error;

                    async fn run(
                        ctx: &#sdk::ActivityCtx<Self::Deps>,
                        args: Self::Args,
                    ) -> ::core::result::Result<Self::Output, Self::Error> {
                        #call.await
                    }
                }

                impl<#provider> #sdk::ActivitySet<#provider> for #marker
                where
                    #provider: #sdk::Provide<<Self as #sdk::Activity>::Deps>
                        + ::core::marker::Send
                        + ::core::marker::Sync
                        + 'static,
                {
                    const NAMES: #sdk::__::Names = #sdk::__::Names::One(#name);

                    fn collect(entries: &mut ::std::vec::Vec<#sdk::__::ActivityEntry<#provider>>) {
                        entries.push(#sdk::__::ActivityEntry::of::<Self>());
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
    fn everything_an_activity_can_say() {
        let args = quote! {
            timeout = "30s",
            queue = "payments",
            priority = -1,
            retry(max_attempts = 5, initial = "200ms", backoff = 1.5, never_on("PaymentError::Declined"))
        };
        let item = quote! {
            /// Charges the card.
            #[instrument]
            #[cfg(feature = "payments")]
            pub async fn charge(
                ctx: &ActivityCtx<App>,
                order: &OrderId,
                mut amount: Cents,
                (low, high): (u8, u8),
            ) -> Result<Payment, PaymentError> {
                ctx.psp.charge(order, amount).await
            }
        };
        assert_expands_to(expand(args, item), "activity");
    }

    #[test]
    fn made_up_names_stay_out_of_the_way() {
        let args = quote!(crate = crate::sdk, marker = Greeting, name = "greet-someone");
        let item = quote! {
            async fn greet(_: &ActivityCtx, ctx: C, _: u8) -> onward::Result<String> {
                Ok(ctx.greeting())
            }
        };
        assert_expands_to(expand(args, item), "activity_renamed");
    }

    #[test]
    fn a_mistake_in_the_options_leaves_the_definition() {
        let item = quote!(
            async fn greet(_: &ActivityCtx) -> onward::Result<()> {
                Ok(())
            }
        );
        let tokens = expand(quote!(tiemout = "30s"), item).to_string();
        assert!(tokens.contains("compile_error"));
        assert!(tokens.contains(":: onward :: Activity for greet"));
    }

    #[test]
    fn a_mistake_in_the_signature_leaves_the_users_function() {
        let item = quote!(
            fn greet(_: &ActivityCtx) -> onward::Result<()> {
                Ok(())
            }
        );
        let tokens = expand(TokenStream::new(), item.clone()).to_string();
        assert!(tokens.contains("compile_error"));
        assert!(tokens.ends_with(&item.to_string()));
    }

    #[test]
    fn half_a_body_is_passed_on() {
        let item: TokenStream = "async fn greet(ctx: &ActivityCtx) -> onward::Result<()> { ctx. }"
            .parse()
            .expect("tokens");
        let tokens = expand(TokenStream::new(), item).to_string();
        assert!(!tokens.contains("compile_error"));
        assert!(tokens.contains("{ ctx . }"));
    }
}
