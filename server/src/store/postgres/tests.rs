#![allow(clippy::unwrap_used)]

use onward_test_postgres::Cluster;
use sqlx::{AssertSqlSafe, Executor, Row, postgres::PgConnection};

use super::*;

/// Every statement that runs often, with the number of its parameters.
const STATEMENTS: [(&str, &str, usize); 12] = [
    ("commit", COMMIT, 35),
    ("renew", include_str!("renew.sql"), 5),
    ("find_newest_runs", include_str!("find_newest_runs.sql"), 2),
    ("hot_runs", include_str!("hot_runs.sql"), 4),
    ("due_runs", include_str!("due_runs.sql"), 6),
    ("list_runs", include_str!("list_runs.sql"), 5),
    ("prune_batches", include_str!("prune_batches.sql"), 3),
    ("read_batches", include_str!("read_batches.sql"), 4),
    ("load_runs", include_str!("load_runs.sql"), 2),
    ("read_run", include_str!("../sql/read_run.sql"), 1),
    ("read_journal_sizes", include_str!("../sql/read_journal_sizes.sql"), 3),
    ("read_journal", include_str!("../sql/read_journal.sql"), 3),
];

async fn plan(connection: &mut PgConnection, name: &str, count: usize) -> String {
    let nulls = vec!["NULL"; count].join(", ");
    let explain = AssertSqlSafe(format!("EXPLAIN EXECUTE {name} ({nulls})"));
    let rows = connection.fetch_all(sqlx::raw_sql(explain)).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

/// On tables that are empty and were never analysed, where the planner knows nothing; with the
/// settings of our sessions, and without, as behind a pooler that takes none.
#[tokio::test]
async fn every_statement_walks_an_index() {
    let url = Cluster::shared().create_database();
    let allow = OpenOptions { unsafe_allow: true, ..OpenOptions::default() };
    for pooling in [false, true] {
        let options = OpenOptions { pg_transaction_pooling: pooling, ..allow.clone() };
        let (connect, mut connection) = connect::options(&url, &options).await.unwrap();
        connect::migrate(&mut connection, &options).await.unwrap();
        let mut session = connect::connect(&connect).await.unwrap();
        session.execute(sqlx::raw_sql("SET plan_cache_mode = force_generic_plan")).await.unwrap();
        for (name, text, count) in STATEMENTS {
            let prepare = AssertSqlSafe(format!("PREPARE {name} AS {text}"));
            session.execute(sqlx::raw_sql(prepare)).await.unwrap();
            let plan = plan(&mut session, name, count).await;
            assert!(!plan.contains("Seq Scan on"), "{name}, pooling {pooling}:\n{plan}");
            // A page of hot runs ends with its last row.
            assert!(name != "hot_runs" || !plan.contains("Sort"), "pooling {pooling}:\n{plan}");
        }
    }
}

#[tokio::test]
async fn all_other_statements_can_be_prepared() {
    let url = Cluster::shared().create_database();
    let allow = OpenOptions { unsafe_allow: true, ..OpenOptions::default() };
    let store = PostgresStore::open(&url, allow).await.unwrap();
    let mut connection = connect::connect(&store.connect).await.unwrap();
    for text in [
        include_str!("read_shards.sql"),
        include_str!("insert_shards.sql"),
        include_str!("change_owner.sql"),
    ] {
        connection.prepare(sqlx::SqlSafeStr::into_sql_str(text)).await.unwrap();
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_name() {
    let url = Cluster::shared().create_database();
    let options = OpenOptions::default();
    let (_, mut connection) = connect::options(&url, &options).await.unwrap();
    connect::migrate(&mut connection, &options).await.unwrap();
    connection
        .execute("INSERT INTO _sqlx_migrations VALUES (999, 'later', now(), true, '\\x00', 0)")
        .await
        .unwrap();
    let error = connect::migrate(&mut connection, &options).await.unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 999, known: 1 }), "{error}");
}
