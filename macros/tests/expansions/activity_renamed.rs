#[track_caller]
#[allow(dead_code, clippy::needless_pass_by_value, clippy::trivially_copy_pass_by_ref)]
fn greet<__C: crate::sdk::__::ActivityTarget<Greeting>>(
    ctx_: __C,
    ctx: C,
    arg1: u8,
) -> __C::Call {
    __C::call(ctx_, (ctx, arg1), ::core::panic::Location::caller())
}
#[doc(hidden)]
#[allow(dead_code, non_camel_case_types)]
struct Greeting {}
const _: () = {
    #[allow(
        clippy::needless_pass_by_value,
        clippy::trivially_copy_pass_by_ref,
        clippy::unnecessary_wraps,
        clippy::unused_async,
    )]
    async fn __greet(_: &ActivityCtx, ctx: C, _: u8) -> onward::Result<String> {
        Ok(ctx.greeting())
    }
    impl crate::sdk::Activity for Greeting {
        const NAME: &'static str = "greet-someone";
        const DEFAULTS: crate::sdk::ActivityOptions = crate::sdk::ActivityOptions::new();
        type Args = (C, u8);
        type Deps = <ActivityCtx as crate::sdk::__::CtxParam>::Deps;
        type Output = <onward::Result<String> as crate::sdk::__::ActivityReturn>::Output;
        type Error = <onward::Result<String> as crate::sdk::__::ActivityReturn>::Error;
        async fn run(
            ctx: &crate::sdk::ActivityCtx<Self::Deps>,
            args: Self::Args,
        ) -> ::core::result::Result<Self::Output, Self::Error> {
            __greet(ctx, args.0, args.1).await
        }
    }
    impl<D> crate::sdk::ActivitySet<D> for Greeting
    where
        D: crate::sdk::Provide<<Self as crate::sdk::Activity>::Deps>
            + ::core::marker::Send + ::core::marker::Sync + 'static,
    {
        const NAMES: crate::sdk::__::Names = crate::sdk::__::Names::One("greet-someone");
        fn collect(entries: &mut ::std::vec::Vec<crate::sdk::__::ActivityEntry<D>>) {
            entries.push(crate::sdk::__::ActivityEntry::of::<Self>());
        }
    }
};
