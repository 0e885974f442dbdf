//! What current code makes of the saved histories.
#![allow(clippy::unwrap_used)]

mod features;
mod long;
mod replay;
mod same;
mod spoilt;
mod written;
