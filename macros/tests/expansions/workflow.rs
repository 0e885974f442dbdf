/// Ships an order.
#[track_caller]
#[allow(dead_code, clippy::needless_pass_by_value, clippy::trivially_copy_pass_by_ref)]
pub(crate) fn ship<C: ::onward::__::WorkflowTarget<ship>>(
    ctx: C,
    order: Order,
    names: &[String],
) -> C::Call {
    C::call(
        ctx,
        (order, <[String] as ::std::borrow::ToOwned>::to_owned(names)),
        ::core::panic::Location::caller(),
    )
}
#[doc(hidden)]
#[allow(dead_code, non_camel_case_types)]
pub(crate) struct ship {}
const _: () = {
    /// Ships an order.
    #[allow(
        clippy::needless_pass_by_value,
        clippy::trivially_copy_pass_by_ref,
        clippy::unnecessary_wraps,
        clippy::unused_async,
    )]
    async fn __ship(
        ctx: &Ctx,
        order: Order,
        names: &[String],
    ) -> Result<Parcel, ShipError> {
        let stock: HashMap<String, u64> = stock(ctx, names).await?;
        for (item, count) in &stock {
            reserve(ctx, item, *count).await?;
        }
        Ok(Parcel::of(order))
    }
    const _: () = {
        #[allow(non_upper_case_globals)]
        #[deprecated(
            note = "the order of a `HashMap` differs on replay: use a `BTreeMap`, or sort first"
        )]
        const iteration_in_hash_order: () = ();
        iteration_in_hash_order
    };
    impl ::onward::Workflow for ship {
        const NAME: &'static str = "ship";
        type Args = (Order, <[String] as ::std::borrow::ToOwned>::Owned);
        type Output = <Result<
            Parcel,
            ShipError,
        > as ::onward::__::ActivityReturn>::Output;
        type Error = <Result<Parcel, ShipError> as ::onward::__::ActivityReturn>::Error;
        async fn run(
            ctx: &::onward::Ctx,
            args: Self::Args,
        ) -> ::core::result::Result<Self::Output, Self::Error> {
            __ship(ctx, args.0, ::core::borrow::Borrow::<[String]>::borrow(&args.1))
                .await
        }
    }
};
