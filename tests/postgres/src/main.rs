//! A throw-away Postgres for scripts: prints its url, lives until standard input ends.
//!
//! `--durable` makes its commits wait for the disk; `--pgbouncer session` or `transaction` puts a
//! pooler in front of it and prints the url through that.

use std::io;

use onward_test_postgres::{Cluster, Durability, Pgbouncer, PoolMode};

fn main() -> Result<(), String> {
    let mut durability = Durability::None;
    let mut pool_mode = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--durable" => durability = Durability::Durable,
            "--pgbouncer" => {
                pool_mode = Some(match args.next().as_deref() {
                    Some("session") => PoolMode::Session,
                    Some("transaction") => PoolMode::Transaction,
                    _ => return Err("--pgbouncer takes session or transaction".to_owned()),
                });
            }
            other => return Err(format!("{other}? --durable or --pgbouncer MODE, or nothing")),
        }
    }
    let cluster = Cluster::start(durability)?;
    let pooler = pool_mode.map(|mode| Pgbouncer::start(&cluster, mode)).transpose()?;
    let url = pooler.as_ref().map_or_else(|| cluster.url("postgres"), |p| p.url("postgres"));
    println!("{url}");
    io::copy(&mut io::stdin(), &mut io::sink()).map_err(|error| error.to_string())?;
    Ok(())
}
