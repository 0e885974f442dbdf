//! The ledger: what the shop's services did, in a SQLite file of the example's own.
//!
//! It is the witness of the demo, so it never asks Onward anything, and it leaves no effect out:
//! an effect and the row that tells of it are one transaction. It is written by the worker and by
//! the submitter, so every write takes SQLite's lock at its start (`BEGIN IMMEDIATE`) and none
//! fails half-way because of the other.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use sqlx::{
    Sqlite, Transaction,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
    },
};

use crate::{
    audit::{Books, Effects},
    orders::{Cents, Line, Order},
    outcome::{Outcome, Reason},
};

/// Bound by SQLite's busy handler: the longest wait for the other process.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// The books of one orders file.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    pool: SqlitePool,
}

/// A call of the payment service.
#[derive(Debug)]
pub(crate) struct Charge<'a> {
    pub(crate) key: &'a str,
    pub(crate) order: &'a Order,
}

/// What the caller of the payment service gets to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Charged {
    Done,
    Declined {
        reason: String,
    },
    Unavailable,
    /// It may have been done.
    NoAnswer,
}

/// What the warehouse answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reserved {
    Held,
    TooFew { left: u32 },
}

/// How far the submission of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Lines with an order whose end is known.
    pub(crate) terminal: u32,
    /// Orders whose run was started and whose end is not known yet.
    pub(crate) open: u32,
}

type Result<T> = std::result::Result<T, sqlx::Error>;

impl Ledger {
    /// Opens the ledger, and makes it if it is not there.
    pub(crate) async fn create(path: &Path) -> anyhow::Result<Self> {
        Self::open_with(path, true).await
    }

    /// Opens a ledger that is there.
    pub(crate) async fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_with(path, false).await
    }

    async fn open_with(path: &Path, create: bool) -> anyhow::Result<Self> {
        let failed = || format!("cannot open the ledger {}", path.display());
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .busy_timeout(LOCK_WAIT)
            .journal_mode(SqliteJournalMode::Wal)
            // What is committed survives the death of the process; only a loss of power may take
            // the last of it, and the demo kills processes.
            .synchronous(SqliteSynchronous::Normal);
        // One connection: SQLite has one writer, and waiting for a connection costs less than
        // waiting for a lock.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .with_context(failed)?;
        let ledger = Self { pool };
        let mut transaction = ledger.begin_write().await.with_context(failed)?;
        sqlx::raw_sql(include_str!("schema.sql"))
            .execute(&mut *transaction)
            .await
            .with_context(failed)?;
        transaction.commit().await.with_context(failed)?;
        Ok(ledger)
    }

    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }

    // --- the services

    /// Signs an attempt in.
    pub(crate) async fn begin(&self, activity: &str, order_id: &str, attempt: u32) -> Result<()> {
        sqlx::query("INSERT INTO attempt (activity, order_id, attempt) VALUES (?, ?, ?)")
            .bind(activity)
            .bind(order_id)
            .bind(attempt)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Sets goods aside, once for each key.
    pub(crate) async fn reserve(
        &self,
        key: &str,
        order_id: &str,
        sku: &str,
        quantity: u32,
    ) -> Result<Reserved> {
        let mut transaction = self.begin_write().await?;
        let held: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM reservation WHERE key = ?)")
                .bind(key)
                .fetch_one(&mut *transaction)
                .await?;
        if held {
            return Ok(Reserved::Held);
        }
        // An article that nobody has heard of is out of stock, too.
        let left: Option<u32> = sqlx::query_scalar(
            "SELECT on_hand - (SELECT coalesce(sum(quantity), 0) FROM reservation \
                               WHERE reservation.sku = stock.sku AND NOT released) \
             FROM stock WHERE sku = ?",
        )
        .bind(sku)
        .fetch_optional(&mut *transaction)
        .await?;
        let left = left.unwrap_or(0);
        if left < quantity {
            return Ok(Reserved::TooFew { left });
        }
        sqlx::query("INSERT INTO reservation (key, order_id, sku, quantity) VALUES (?, ?, ?, ?)")
            .bind(key)
            .bind(order_id)
            .bind(sku)
            .bind(quantity)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Reserved::Held)
    }

    /// Puts goods back. Without a reservation there is nothing to do.
    pub(crate) async fn release(&self, order_id: &str) -> Result<()> {
        sqlx::query("UPDATE reservation SET released = 1 WHERE order_id = ?")
            .bind(order_id)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// The payment service: charges once for each key, and logs every call.
    ///
    /// The order says how often it fails: its first calls under a key find it unavailable, the next
    /// ones are carried out without the caller getting to know.
    pub(crate) async fn charge(&self, Charge { key, order }: &Charge<'_>) -> Result<Charged> {
        let mut transaction = self.begin_write().await?;
        let earlier: u32 = sqlx::query_scalar("SELECT count(*) FROM call WHERE key = ?")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await?;
        let declined = order.card.strip_prefix("tok_declined_");
        let (outcome, answer) = if earlier < order.faults.payment {
            ("unavailable", Charged::Unavailable)
        } else if let Some(reason) = declined {
            ("declined", Charged::Declined { reason: reason.replace('_', " ") })
        } else {
            let inserted = sqlx::query(
                "INSERT INTO charge (key, order_id, cents) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(key)
            .bind(&order.id)
            .bind(order.amount.0)
            .execute(&mut *transaction)
            .await?;
            let lost = earlier < order.faults.payment.saturating_add(order.faults.replies_lost);
            (
                if inserted.rows_affected() == 1 { "done" } else { "repeated" },
                if lost { Charged::NoAnswer } else { Charged::Done },
            )
        };
        log_call(&mut transaction, "charge", key, &order.id, outcome).await?;
        transaction.commit().await?;
        Ok(answer)
    }

    /// The payment service: gives back what was charged for an order, once for each key. Without a
    /// charge there is nothing to do.
    pub(crate) async fn refund(&self, key: &str, order_id: &str) -> Result<()> {
        let mut transaction = self.begin_write().await?;
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM refund WHERE key = ?)")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO refund (key, order_id, cents) \
             SELECT ?1, order_id, cents FROM charge WHERE order_id = ?2 LIMIT 1 \
             ON CONFLICT DO NOTHING",
        )
        .bind(key)
        .bind(order_id)
        .execute(&mut *transaction)
        .await?;
        let outcome = match (known, inserted.rows_affected()) {
            (true, _) => "repeated",
            (false, 0) => "nothing",
            (false, _) => "done",
        };
        log_call(&mut transaction, "refund", key, order_id, outcome).await?;
        transaction.commit().await
    }

    /// Hands a parcel over, once for each key, and returns its number.
    pub(crate) async fn ship(&self, key: &str, order_id: &str) -> Result<String> {
        sqlx::query(
            "INSERT INTO shipment (key, order_id, parcel) VALUES (?1, ?2, 'P-' || ?2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(key)
        .bind(order_id)
        .execute(&self.pool)
        .await?;
        sqlx::query_scalar("SELECT parcel FROM shipment WHERE key = ?")
            .bind(key)
            .fetch_one(&self.pool)
            .await
    }

    /// Stops a parcel. Without one there is nothing to do.
    pub(crate) async fn call_off(&self, order_id: &str) -> Result<()> {
        sqlx::query("UPDATE shipment SET called_off = 1 WHERE order_id = ?")
            .bind(order_id)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Sends a mail, once for each key.
    pub(crate) async fn email(&self, key: &str, order_id: &str, address: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO email (key, order_id, address) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(key)
        .bind(order_id)
        .bind(address)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    // --- the submitter's notebook

    /// Makes sure that these are the books of this file: a line that was noted before says the same
    /// today.
    pub(crate) async fn claim(&self, lines: &[Line]) -> anyhow::Result<()> {
        let noted: BTreeMap<u32, String> = sqlx::query_as("SELECT line, text FROM line")
            .fetch_all(&self.pool)
            .await?
            .into_iter()
            .collect();
        let lines: BTreeMap<u32, &str> =
            lines.iter().map(|line| (line.number, line.text.as_str())).collect();
        for (number, text) in &noted {
            anyhow::ensure!(
                lines.get(number) == Some(&text.as_str()),
                "this ledger keeps the books of another file, whose line {number} is `{text}`: \
                 name another one with --ledger"
            );
        }
        Ok(())
    }

    /// Notes that the run of a line was started. A line whose end is known keeps it.
    pub(crate) async fn note_open(&self, line: &Line) -> Result<()> {
        sqlx::query(
            "INSERT INTO line (line, text, order_id, status) VALUES (?, ?, ?, 'open') \
             ON CONFLICT DO NOTHING",
        )
        .bind(line.number)
        .bind(&line.text)
        .bind(line.order.as_ref().ok().map(|order| &order.id))
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Notes how a line ended.
    pub(crate) async fn note_end(&self, line: &Line, outcome: &Outcome) -> Result<()> {
        let (status, reason, detail) = match outcome {
            Outcome::Completed => ("completed", None, None),
            Outcome::Rejected { reason, detail } => {
                ("rejected", Some(reason.name()), Some(detail.as_str()))
            }
            Outcome::Malformed { detail } => ("malformed", None, Some(detail.as_str())),
            Outcome::Failed { detail } => ("failed", None, Some(detail.as_str())),
        };
        sqlx::query(
            "INSERT INTO line (line, text, order_id, status, reason, detail) \
             VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT (line) DO UPDATE SET status = excluded.status, reason = excluded.reason, \
                 detail = excluded.detail",
        )
        .bind(line.number)
        .bind(&line.text)
        .bind(line.order.as_ref().ok().map(|order| &order.id))
        .bind(status)
        .bind(reason)
        .bind(detail)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    pub(crate) async fn progress(&self) -> Result<Progress> {
        let (terminal, open) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE status IN ('completed', 'rejected')), \
                    count(*) FILTER (WHERE status = 'open') FROM line",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Progress { terminal, open })
    }

    // --- the auditor

    /// Attempts of activities after their first.
    pub(crate) async fn retries(&self) -> Result<u64> {
        let retries: i64 = sqlx::query_scalar("SELECT count(*) FROM attempt WHERE attempt > 1")
            .fetch_one(&self.pool)
            .await?;
        Ok(retries.unsigned_abs())
    }

    /// All that the check looks at, added up for each order id.
    pub(crate) async fn books(&self) -> anyhow::Result<Books> {
        type Row = (u32, String, Option<String>, Option<String>);
        let mut books = Books { retries: self.retries().await?, ..Books::default() };
        let lines: Vec<Row> = sqlx::query_as("SELECT line, status, reason, detail FROM line")
            .fetch_all(&self.pool)
            .await?;
        for (line, status, reason, detail) in lines {
            let detail = detail.unwrap_or_default();
            let outcome = match (status.as_str(), reason) {
                ("completed", None) => Outcome::Completed,
                ("rejected", Some(reason)) => {
                    let reason: Reason = reason.parse().map_err(anyhow::Error::msg)?;
                    Outcome::Rejected { reason, detail }
                }
                ("malformed", None) => Outcome::Malformed { detail },
                ("failed", None) => Outcome::Failed { detail },
                _ => continue, // open
            };
            books.outcomes.insert(line, outcome);
        }
        let repeated: i64 =
            sqlx::query_scalar("SELECT count(*) FROM call WHERE outcome = 'repeated'")
                .fetch_one(&self.pool)
                .await?;
        books.calls_absorbed = repeated.unsigned_abs();

        for (sql, add) in EFFECTS {
            let rows: Vec<(String, i64, u32)> = sqlx::query_as(sql).fetch_all(&self.pool).await?;
            for (order_id, cents, count) in rows {
                add(books.effects.entry(order_id).or_default(), Cents(cents), count);
            }
        }
        Ok(books)
    }
}

type Add = fn(&mut Effects, Cents, u32);

/// For each kind of effect: order id, sum of money, number.
const EFFECTS: [(&str, Add); 6] = [
    (
        "SELECT order_id, sum(cents), count(*) FROM charge GROUP BY order_id",
        |effects, cents, count| {
            effects.charges = count;
            effects.charged = cents;
        },
    ),
    (
        "SELECT order_id, sum(cents), count(*) FROM refund GROUP BY order_id",
        |effects, cents, count| {
            effects.refunds = count;
            effects.refunded = cents;
        },
    ),
    (
        "SELECT order_id, 0, count(*) FROM reservation WHERE NOT released GROUP BY order_id",
        |effects, _, count| effects.held = count,
    ),
    (
        "SELECT order_id, 0, count(*) FROM shipment WHERE NOT called_off GROUP BY order_id",
        |effects, _, count| effects.parcels = count,
    ),
    ("SELECT order_id, 0, count(*) FROM email GROUP BY order_id", |effects, _, count| {
        effects.emails = count;
    }),
    // Every call belongs to an order, also when it came to nothing.
    ("SELECT order_id, 0, count(*) FROM call GROUP BY order_id", |effects, _, count| {
        effects.calls = count;
    }),
];

async fn log_call(
    transaction: &mut Transaction<'_, Sqlite>,
    operation: &str,
    key: &str,
    order_id: &str,
    outcome: &str,
) -> Result<()> {
    sqlx::query("INSERT INTO call (operation, key, order_id, outcome) VALUES (?, ?, ?, ?)")
        .bind(operation)
        .bind(key)
        .bind(order_id)
        .bind(outcome)
        .execute(&mut **transaction)
        .await
        .map(drop)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::orders::{
        Faults,
        tests::{GOOD, file},
    };

    pub(crate) async fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&dir.path().join("ledger.db")).await.unwrap();
        (dir, ledger)
    }

    fn order(change: impl FnOnce(&mut Order)) -> Order {
        let mut order = file(&[GOOD]).lines.remove(0).order.unwrap();
        order.faults = Faults::default();
        change(&mut order);
        order
    }

    async fn count(ledger: &Ledger, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&ledger.pool).await.unwrap()
    }

    #[tokio::test]
    async fn a_charge_is_made_once_for_each_key_and_every_call_is_logged() {
        let (_dir, ledger) = ledger().await;
        let order = order(|_| {});
        for _ in 0..3 {
            let charged = ledger.charge(&Charge { key: "run-2", order: &order }).await.unwrap();
            assert_eq!(charged, Charged::Done);
        }
        assert_eq!(count(&ledger, "SELECT count(*) FROM charge").await, 1);
        assert_eq!(count(&ledger, "SELECT count(*) FROM call").await, 3);
        assert_eq!(ledger.books().await.unwrap().calls_absorbed, 2);
    }

    /// A unique index on the order id would make the check blind.
    #[tokio::test]
    async fn a_second_charge_of_an_order_under_another_key_is_seen() {
        let (_dir, ledger) = ledger().await;
        let order = order(|_| {});
        for key in ["run-2", "another-run-2"] {
            ledger.charge(&Charge { key, order: &order }).await.unwrap();
        }
        let effects = &ledger.books().await.unwrap().effects["W-1"];
        assert_eq!((effects.charges, effects.charged), (2, Cents(5160)));
    }

    #[tokio::test]
    async fn a_lost_answer_means_that_the_money_moved() {
        let (_dir, ledger) = ledger().await;
        let order =
            order(|order| order.faults = Faults { payment: 1, replies_lost: 1, ..order.faults });
        let mut answers = Vec::new();
        let mut charges = Vec::new();
        for _ in 0..3 {
            answers.push(ledger.charge(&Charge { key: "run-2", order: &order }).await.unwrap());
            charges.push(count(&ledger, "SELECT count(*) FROM charge").await);
        }
        assert_eq!(answers, [Charged::Unavailable, Charged::NoAnswer, Charged::Done]);
        assert_eq!(charges, [0, 1, 1]);
    }

    #[tokio::test]
    async fn a_declined_card_is_charged_nothing() {
        let (_dir, ledger) = ledger().await;
        let order = order(|order| order.card = "tok_declined_expired_card".into());
        let charged = ledger.charge(&Charge { key: "run-2", order: &order }).await.unwrap();
        assert_eq!(charged, Charged::Declined { reason: "expired card".into() });
        assert_eq!(count(&ledger, "SELECT count(*) FROM charge").await, 0);
    }

    #[tokio::test]
    async fn what_was_reserved_is_gone_until_it_is_released() {
        let (_dir, ledger) = ledger().await;
        let reserve =
            async |key, sku, quantity| ledger.reserve(key, "W-1", sku, quantity).await.unwrap();
        assert_eq!(reserve("a", "TEA-0101", 999).await, Reserved::Held);
        assert_eq!(reserve("a", "TEA-0101", 999).await, Reserved::Held, "the same call again");
        assert_eq!(reserve("b", "TEA-0101", 2).await, Reserved::TooFew { left: 1 });
        ledger.release("W-1").await.unwrap();
        assert_eq!(reserve("b", "TEA-0101", 2).await, Reserved::Held);
        assert_eq!(reserve("c", "TEA-0199", 1).await, Reserved::TooFew { left: 0 });
        assert_eq!(reserve("d", "NO-SUCH", 1).await, Reserved::TooFew { left: 0 });
    }

    #[tokio::test]
    async fn undoing_what_was_not_done_does_nothing() {
        let (_dir, ledger) = ledger().await;
        ledger.refund("run-5", "W-1").await.unwrap();
        ledger.release("W-1").await.unwrap();
        ledger.call_off("W-1").await.unwrap();
        let effects = &ledger.books().await.unwrap().effects["W-1"];
        assert_eq!(*effects, Effects { calls: 1, ..Effects::default() });
    }

    #[tokio::test]
    async fn a_refund_gives_back_what_was_charged_once() {
        let (_dir, ledger) = ledger().await;
        ledger.charge(&Charge { key: "run-2", order: &order(|_| {}) }).await.unwrap();
        for _ in 0..2 {
            ledger.refund("run-5", "W-1").await.unwrap();
        }
        let books = ledger.books().await.unwrap();
        let effects = &books.effects["W-1"];
        assert_eq!((effects.refunds, effects.refunded), (1, Cents(2580)));
        assert_eq!(books.calls_absorbed, 1);
    }

    #[tokio::test]
    async fn parcels_and_mails_leave_once_for_each_key() {
        let (_dir, ledger) = ledger().await;
        for _ in 0..2 {
            assert_eq!(ledger.ship("run-4", "W-1").await.unwrap(), "P-W-1");
            ledger.email("run-5", "W-1", "zoe@example.org").await.unwrap();
        }
        let effects = &ledger.books().await.unwrap().effects["W-1"];
        assert_eq!((effects.parcels, effects.emails), (1, 1));
        ledger.call_off("W-1").await.unwrap();
        assert_eq!(ledger.books().await.unwrap().effects["W-1"].parcels, 0);
    }

    #[tokio::test]
    async fn calls_are_append_only() {
        let (_dir, ledger) = ledger().await;
        ledger.charge(&Charge { key: "run-2", order: &order(|_| {}) }).await.unwrap();
        for sql in ["DELETE FROM call", "UPDATE call SET key = 'x'"] {
            let error = sqlx::query(sql).execute(&ledger.pool).await.unwrap_err();
            assert!(error.to_string().contains("append-only"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_ledger_keeps_the_books_of_one_file() {
        let (_dir, ledger) = ledger().await;
        let mine = file(&[GOOD]);
        ledger.note_open(&mine.lines[0]).await.unwrap();
        ledger.claim(&mine.lines).await.unwrap();
        let other = file(&[&GOOD.replace("W-1", "W-2")]);
        let error = ledger.claim(&other.lines).await.unwrap_err();
        assert!(error.to_string().contains("books of another file"), "{error}");
    }

    #[tokio::test]
    async fn a_line_that_ended_is_not_open_again() {
        let (_dir, ledger) = ledger().await;
        let line = &file(&[GOOD]).lines[0];
        ledger.note_open(line).await.unwrap();
        assert_eq!(ledger.progress().await.unwrap(), Progress { terminal: 0, open: 1 });
        let declined =
            Outcome::Rejected { reason: Reason::Declined, detail: "expired card".into() };
        ledger.note_end(line, &declined).await.unwrap();
        ledger.note_open(line).await.unwrap();
        assert_eq!(ledger.progress().await.unwrap(), Progress { terminal: 1, open: 0 });
        assert_eq!(ledger.books().await.unwrap().outcomes[&2], declined);
    }
}
