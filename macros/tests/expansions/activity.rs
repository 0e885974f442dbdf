/// Charges the card.
#[cfg(feature = "payments")]
#[track_caller]
#[allow(dead_code, clippy::needless_pass_by_value, clippy::trivially_copy_pass_by_ref)]
pub fn charge<C: ::onward::__::ActivityTarget<charge>>(
    ctx: C,
    order: &OrderId,
    amount: Cents,
    arg2: (u8, u8),
) -> C::Call {
    C::call(
        ctx,
        (<OrderId as ::std::borrow::ToOwned>::to_owned(order), amount, arg2),
        ::core::panic::Location::caller(),
    )
}
#[cfg(feature = "payments")]
#[doc(hidden)]
#[allow(dead_code, non_camel_case_types)]
pub struct charge {}
#[cfg(feature = "payments")]
const _: () = {
    /// Charges the card.
    #[instrument]
    #[cfg(feature = "payments")]
    #[allow(
        clippy::needless_pass_by_value,
        clippy::trivially_copy_pass_by_ref,
        clippy::unnecessary_wraps,
        clippy::unused_async,
    )]
    async fn __charge(
        ctx: &ActivityCtx<App>,
        order: &OrderId,
        mut amount: Cents,
        (low, high): (u8, u8),
    ) -> Result<Payment, PaymentError> {
        ctx.psp.charge(order, amount).await
    }
    impl ::onward::Activity for charge {
        const NAME: &'static str = "charge";
        const DEFAULTS: ::onward::ActivityOptions = ::onward::ActivityOptions::new()
            .timeout(::core::time::Duration::from_millis(30000u64))
            .retry(
                ::onward::Retry::new()
                    .max_attempts(5u32)
                    .initial(::core::time::Duration::from_millis(200u64))
                    .backoff(1.5f64)
                    .never_on(&["PaymentError::Declined"]),
            )
            .queue("payments")
            .priority(-1i32);
        type Args = (<OrderId as ::std::borrow::ToOwned>::Owned, Cents, (u8, u8));
        type Deps = <ActivityCtx<App> as ::onward::__::CtxParam>::Deps;
        type Output = <Result<
            Payment,
            PaymentError,
        > as ::onward::__::ActivityReturn>::Output;
        type Error = <Result<
            Payment,
            PaymentError,
        > as ::onward::__::ActivityReturn>::Error;
        async fn run(
            ctx: &::onward::ActivityCtx<Self::Deps>,
            args: Self::Args,
        ) -> ::core::result::Result<Self::Output, Self::Error> {
            __charge(
                    ctx,
                    ::core::borrow::Borrow::<OrderId>::borrow(&args.0),
                    args.1,
                    args.2,
                )
                .await
        }
    }
    impl<D> ::onward::ActivitySet<D> for charge
    where
        D: ::onward::Provide<<Self as ::onward::Activity>::Deps> + ::core::marker::Send
            + ::core::marker::Sync + 'static,
    {
        const NAMES: ::onward::__::Names = ::onward::__::Names::One("charge");
        fn collect(entries: &mut ::std::vec::Vec<::onward::__::ActivityEntry<D>>) {
            entries.push(::onward::__::ActivityEntry::of::<Self>());
        }
    }
};
