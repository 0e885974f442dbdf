use onward::prelude::*;

#[derive(Clone)]
struct Card;

#[activity]
async fn takes(_: &ActivityCtx, card: Card) -> onward::Result<()> {
    drop(card);
    Ok(())
}

#[activity]
async fn gives(_: &ActivityCtx) -> onward::Result<Card> {
    Ok(Card)
}

fn main() {}
