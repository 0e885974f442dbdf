//! The protocol by which nodes own a shard and write to it, small enough that every order of its
//! steps can be tried.
//!
//! - [`database`]: what each statement does to the tables.
//! - [`node`]: what a node does before a statement and with its answer.
//! - [`world`]: two nodes, one database, and what can go wrong between them: requests and replies
//!   that are lost or late, pauses, crashes, and failovers that lose the newest transactions.
//! - [`faults`]: rules that can be taken out.
//! - [`search`]: tries all orders.
//!
//! Each rule names the statement or function that it stands for, and is written like it: whoever
//! changes one looks at the other. One shard is enough, as shards share no row; so are one workflow
//! id and batches that start its run or close it, as a lane decides either on its memory alone.
//!
//! What is left out: SQL's own concurrency (each statement is one step, because all that change a
//! shard lock its row first), batches that the database refuses for their data, pruning, and clocks
//! that run at different speeds.

pub mod database;
pub mod faults;
pub mod node;
pub mod search;
pub mod world;
