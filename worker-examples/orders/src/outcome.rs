//! What becomes of a line of the file. It is exactly one of these:
//!
//! - **completed**: its run completed. The stock is held, the card charged once, the parcel sent,
//!   the customer told.
//! - **rejected**: the business said no, and nothing is left behind. Either the order id belongs to
//!   an earlier line, so the workflow id policy refused the run; or the run ended with one of the
//!   first three variants of [`OrderError`](crate::fulfilment::OrderError): the item is out of
//!   stock, the card was declined (what was reserved is released), or the carrier does not take
//!   the parcel (the charge is refunded and the stock released).
//! - **malformed**: it cannot be read as an order; no run was started.
//!
//! Anything else — a run that ended in another way, or has not ended — counts as **failed** or
//! **open**, is in none of the three sums, and makes the check fail.

use std::{fmt, str::FromStr};

/// How a line ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Rejected { reason: Reason, detail: String },
    Malformed { detail: String },
    Failed { detail: String },
}

/// Why the business said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    DuplicateId,
    OutOfStock,
    Declined,
    NotShipped,
}

impl Reason {
    pub(crate) const ALL: [Self; 4] =
        [Self::DuplicateId, Self::OutOfStock, Self::Declined, Self::NotShipped];

    /// As the ledger has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DuplicateId => "duplicate_id",
            Self::OutOfStock => "out_of_stock",
            Self::Declined => "declined",
            Self::NotShipped => "not_shipped",
        }
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let reason = Self::ALL.into_iter().find(|reason| reason.name() == name);
        reason.ok_or_else(|| format!("no order is rejected for `{name}`"))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DuplicateId => "order id used before",
            Self::OutOfStock => "out of stock",
            Self::Declined => "card declined",
            Self::NotShipped => "not shipped, refunded",
        })
    }
}
