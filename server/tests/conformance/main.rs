//! One suite for every store, with equal answers.
#![allow(clippy::unwrap_used)]

/// Runs each case on every store.
macro_rules! on_every_store {
    ($($(#[$doc:meta])* async fn $name:ident($world:ident: World) $body:block)*) => {
        $($(#[$doc])* async fn $name(mut $world: World) {
            // Not every case changes its world.
            let _ = &mut $world;
            $body
        })*

        mod memory {
            $(#[tokio::test] async fn $name() { super::$name(super::World::memory().await).await; })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::World::sqlite().await).await; })*
        }
        on_every_way_to_postgres!(@mods $($name)*);
    };
}

/// Runs each case on Postgres: without a pooler, and behind one in session or transaction mode.
macro_rules! on_every_way_to_postgres {
    ($($(#[$doc:meta])* async fn $name:ident($world:ident: World) $body:block)*) => {
        $($(#[$doc])* async fn $name(mut $world: World) {
            // Not every case changes its world.
            let _ = &mut $world;
            $body
        })*

        on_every_way_to_postgres!(@mods $($name)*);
    };
    (@mods $($name:ident)*) => {
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::World::postgres().await).await; })*
        }
        mod postgres_session_pooler {
            $(#[tokio::test] async fn $name() {
                super::$name(super::World::pooled(super::PoolMode::Session).await).await;
            })*
        }
        mod postgres_transaction_pooler {
            $(#[tokio::test] async fn $name() {
                super::$name(super::World::pooled(super::PoolMode::Transaction).await).await;
            })*
        }
    };
}

mod commit;
mod faults;
mod ghost;
mod ownership;
mod reads;
mod silence;
mod start_up;
mod world;
