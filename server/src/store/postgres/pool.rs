//! Connections that carry one statement at a time, each with a bound on how long it takes.
//!
//! The driver's own pool waits without end for a connection whose packets vanish: for an answer,
//! and once more for a sign of life when the connection is given back.
//!
//! Invariant: a connection is kept only after it has answered. One that was given up half-way, or
//! has told of an error, is closed, because nobody knows what it is in the middle of.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sqlx::{
    Connection, Either, Executor, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    connect::{Backoff, connect, timed_out},
    error::is_lost,
};

/// How long a statement waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Sessions do not grow old: what they hold in memory goes, and no firewall has forgotten them.
const LIFETIME: Duration = Duration::from_mins(10);

/// The rows that a statement returned, and how many it changed.
type Answer = (Vec<PgRow>, u64);

#[derive(Debug)]
pub(super) struct Pool {
    connect: PgConnectOptions,
    /// Each statement goes into a transaction, so that a pooler keeps its parts together.
    in_transactions: bool,
    /// After so long without an answer a connection is given up.
    deadline: Duration,
    turns: Semaphore,
    idle: Mutex<Vec<Idle>>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    opened: Instant,
}

impl Pool {
    pub(super) fn new(
        connect: PgConnectOptions,
        in_transactions: bool,
        size: u32,
        deadline: Duration,
    ) -> Self {
        let turns = Semaphore::new(size as usize);
        let (idle, backoff) = (Mutex::default(), Backoff::default());
        Self { connect, in_transactions, deadline, turns, idle, backoff }
    }

    /// Sends a statement that may run twice: once more on a new connection if the one that was at
    /// hand turns out to be dead.
    pub(super) async fn ask<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> sqlx::Result<Answer> {
        let turn = timeout(TURN, self.turns.acquire()).await;
        let _turn =
            turn.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?;
        let idle = self.take_idle();
        if let Some(idle) = idle {
            match self.ask_once(Some(idle), query()).await {
                // What broke this one may have broken all of them.
                Err(error) if is_lost(&error) => self.idle().clear(),
                answer => return answer,
            }
        }
        self.ask_once(None, query()).await
    }

    async fn ask_once(
        &self,
        idle: Option<Idle>,
        query: Query<'_, Postgres, PgArguments>,
    ) -> sqlx::Result<Answer> {
        let work = async {
            let mut idle = if let Some(idle) = idle {
                idle
            } else {
                let connection = self.backoff.open(connect(&self.connect)).await?;
                Idle { connection, opened: Instant::now() }
            };
            let answer = if self.in_transactions {
                let mut transaction = idle.connection.begin().await?;
                let answer = answer(query.persistent(false), &mut transaction).await?;
                transaction.commit().await?;
                answer
            } else {
                answer(query, &mut idle.connection).await?
            };
            Ok((idle, answer))
        };
        let (idle, answer) =
            timeout(self.deadline, work).await.unwrap_or_else(|_| Err(timed_out()))?;
        if !self.turns.is_closed() {
            self.idle().push(idle);
        }
        Ok(answer)
    }

    fn take_idle(&self) -> Option<Idle> {
        let mut idle = self.idle();
        idle.retain(|idle| idle.opened.elapsed() < LIFETIME);
        idle.pop()
    }

    /// Lets connections end in order. No statement may follow.
    pub(super) async fn close(&self) {
        self.turns.close();
        let idle = std::mem::take(&mut *self.idle());
        for idle in idle {
            // If it cannot be told the end, it notices.
            let _ = idle.connection.close().await;
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    query: Query<'_, Postgres, PgArguments>,
    connection: &mut PgConnection,
) -> sqlx::Result<Answer> {
    let mut answers = connection.fetch_many(query);
    let (mut rows, mut changed) = (Vec::new(), 0);
    while let Some(next) = answers.try_next().await? {
        match next {
            Either::Left(done) => changed += done.rows_affected(),
            Either::Right(row) => rows.push(row),
        }
    }
    Ok((rows, changed))
}
