//! The check: do the books say what the outcomes promise, order id by order id?
//!
//! It trusts nobody's count. The file says which lines are orders, the notebook how each of them
//! ended, and the services' own tables what really happened. With `C`, `R` and `M` for completed,
//! rejected and malformed lines, all of these must hold:
//!
//! - `C + R + M` = lines: every line has exactly one end.
//! - charges = `C` + refunds: who got nothing paid nothing.
//! - No order id was charged twice, under whatever key.
//! - Nothing is lost: each order has an end, and every effect that its end promises is there.
//! - Nothing is there that no end promises.

use std::{collections::BTreeMap, fmt};

use crate::{
    orders::{Cents, OrdersFile},
    outcome::{Outcome, Reason},
};

/// What the services did for one order id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Calls of the payment service, whatever came of them.
    pub(crate) calls: u32,
    pub(crate) charges: u32,
    pub(crate) charged: Cents,
    pub(crate) refunds: u32,
    pub(crate) refunded: Cents,
    /// Reservations that are not released.
    pub(crate) held: u32,
    /// Parcels that were not called off.
    pub(crate) parcels: u32,
    pub(crate) emails: u32,
}

impl Default for Effects {
    fn default() -> Self {
        let (charged, refunded) = (Cents(0), Cents(0));
        Self { calls: 0, charges: 0, charged, refunds: 0, refunded, held: 0, parcels: 0, emails: 0 }
    }
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { charges, charged, refunds, refunded, held, parcels, emails, calls: _ } = self;
        write!(f, "{charges} charges ({charged}), {refunds} refunds ({refunded}), ")?;
        write!(f, "{held} reservations, {parcels} parcels, {emails} mails")
    }
}

/// What the ledger tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Books {
    /// How each line ended, of those that have.
    pub(crate) outcomes: BTreeMap<u32, Outcome>,
    pub(crate) effects: BTreeMap<String, Effects>,
    pub(crate) retries: u64,
    /// Calls of the payment service that asked for what was done already.
    pub(crate) calls_absorbed: u64,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Audit {
    lines: u64,
    completed: u64,
    rejected: u64,
    malformed: u64,
    retries: u64,
    charges: u64,
    refunds: u64,
    calls_absorbed: u64,
    duplicate_charges: u64,
    lost: u64,
    /// Each with the line or order id it is about.
    violations: Vec<String>,
}

impl Audit {
    pub(crate) fn new(file: &OrdersFile, books: &Books) -> Self {
        let mut audit = Self {
            lines: file.lines.len() as u64,
            retries: books.retries,
            calls_absorbed: books.calls_absorbed,
            ..Self::default()
        };
        let owners = file.owners();
        for line in &file.lines {
            let outcome = books.outcomes.get(&line.number);
            match &line.order {
                Ok(order) if owners[order.id.as_str()] == line.number => {
                    let effects = books.effects.get(&order.id).copied().unwrap_or_default();
                    audit.order(&order.id, order.amount, outcome, effects);
                }
                Ok(order) => match outcome {
                    Some(Outcome::Rejected { reason: Reason::DuplicateId, .. }) => {
                        audit.rejected += 1;
                    }
                    other => audit.violations.push(format!(
                        "line {} repeats order id {} and was not rejected for that: {other:?}",
                        line.number, order.id
                    )),
                },
                Err(reason) => match outcome {
                    Some(Outcome::Malformed { .. }) => audit.malformed += 1,
                    other => audit.violations.push(format!(
                        "line {} is malformed ({reason}) and was not noted as that: {other:?}",
                        line.number
                    )),
                },
            }
        }
        for (order_id, effects) in &books.effects {
            audit.charges += u64::from(effects.charges);
            audit.refunds += u64::from(effects.refunds);
            audit.duplicate_charges += u64::from(effects.charges.saturating_sub(1));
            if !owners.contains_key(order_id.as_str()) {
                audit
                    .violations
                    .push(format!("{order_id} is no order of the file and has {effects}"));
            }
        }
        audit.sums();
        audit
    }

    /// One order: are its effects those of its end?
    fn order(&mut self, id: &str, amount: Cents, outcome: Option<&Outcome>, effects: Effects) {
        let paid = Effects { charges: 1, charged: amount, ..Effects::default() };
        let promised = match outcome {
            Some(Outcome::Completed) => {
                self.completed += 1;
                Effects { held: 1, parcels: 1, emails: 1, ..paid }
            }
            Some(Outcome::Rejected { reason: Reason::OutOfStock | Reason::Declined, .. }) => {
                self.rejected += 1;
                Effects::default()
            }
            Some(Outcome::Rejected { reason: Reason::NotShipped, .. }) => {
                self.rejected += 1;
                Effects { refunds: 1, refunded: amount, ..paid }
            }
            other => {
                self.lost += 1;
                let end = other.map_or("it has no end".to_owned(), |end| format!("{end:?}"));
                self.violations.push(format!("{id} is lost: {end}"));
                return;
            }
        };
        // How often it was asked is nobody's promise.
        let found = Effects { calls: 0, ..effects };
        if found == promised {
            return;
        }
        self.violations.push(format!("{id} has {found} and should have {promised}"));
        let missing = [
            (found.charges, promised.charges),
            (found.refunds, promised.refunds),
            (found.held, promised.held),
            (found.parcels, promised.parcels),
            (found.emails, promised.emails),
        ]
        .iter()
        .any(|(found, promised)| found < promised);
        self.lost += u64::from(missing);
    }

    fn sums(&mut self) {
        let ends = self.completed + self.rejected + self.malformed;
        if ends != self.lines {
            self.violations.push(format!("C + R + M is {ends}, the file has {} lines", self.lines));
        }
        let paid = self.completed + self.refunds;
        if self.charges != paid {
            self.violations
                .push(format!("C + refunds is {paid}, there are {} charges", self.charges));
        }
        if self.duplicate_charges > 0 {
            self.violations.push(format!("{} charges too many", self.duplicate_charges));
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, completed, rejected, malformed, charges, refunds, .. } = self;
        let (ends, paid) = (completed + rejected + malformed, completed + refunds);
        let says = |holds| if holds { "holds" } else { "IS VIOLATED" };
        let Self { duplicate_charges, lost, calls_absorbed, retries, .. } = self;
        writeln!(
            f,
            "C + R + M = lines      {completed} + {rejected} + {malformed} = {ends}, lines {lines}: {}",
            says(ends == *lines)
        )?;
        writeln!(
            f,
            "charges = C + refunds  {completed} + {refunds} = {paid}, charges {charges}: {}",
            says(paid == *charges)
        )?;
        writeln!(f, "duplicate charges      {duplicate_charges} (counted for each order id)")?;
        writeln!(f, "lost                   {lost}")?;
        for violation in self.violations.iter().take(20) {
            writeln!(f, "  violated: {violation}")?;
        }
        if let Some(more) = self.violations.len().checked_sub(20).filter(|more| *more > 0) {
            writeln!(f, "  violated: and {more} more")?;
        }
        write!(
            f,
            "check: {lines} lines, {completed} completed, {rejected} rejected, {malformed} malformed, \
             {retries} retries, charges {charges}, refunds {refunds}, repeated calls absorbed \
             {calls_absorbed}, duplicate charges {duplicate_charges}, lost {lost}"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::orders::tests::{GOOD, file};

    const DONE: Effects = Effects {
        calls: 2,
        charges: 1,
        charged: Cents(2580),
        refunds: 0,
        refunded: Cents(0),
        held: 1,
        parcels: 1,
        emails: 1,
    };
    const UNDONE: Effects =
        Effects { refunds: 1, refunded: Cents(2580), held: 0, parcels: 0, emails: 0, ..DONE };

    fn rejected(reason: Reason) -> Outcome {
        Outcome::Rejected { reason, detail: String::new() }
    }

    /// Five lines: completed, not shipped, declined, a repeated id, malformed.
    fn shop() -> (OrdersFile, Books) {
        let second = GOOD.replace("W-1", "W-2");
        let third = GOOD.replace("W-1", "W-3");
        let file = file(&[GOOD, &second, &third, GOOD, "W-5,?"]);
        let outcomes = BTreeMap::from([
            (2, Outcome::Completed),
            (3, rejected(Reason::NotShipped)),
            (4, rejected(Reason::Declined)),
            (5, rejected(Reason::DuplicateId)),
            (6, Outcome::Malformed { detail: String::new() }),
        ]);
        let declined = Effects { calls: 1, ..Effects::default() };
        let effects = BTreeMap::from([
            ("W-1".to_owned(), DONE),
            ("W-2".to_owned(), UNDONE),
            ("W-3".to_owned(), declined),
        ]);
        (file, Books { outcomes, effects, retries: 4, calls_absorbed: 1 })
    }

    fn audit(change: impl FnOnce(&mut Books)) -> Audit {
        let (file, mut books) = shop();
        change(&mut books);
        Audit::new(&file, &books)
    }

    #[test]
    fn good_books_pass() {
        let audit = audit(|_| {});
        assert!(audit.passed(), "{audit}");
        assert_eq!(
            audit.to_string().lines().last().unwrap(),
            "check: 5 lines, 1 completed, 3 rejected, 1 malformed, 4 retries, charges 2, refunds 1, \
             repeated calls absorbed 1, duplicate charges 0, lost 0"
        );
    }

    #[test]
    fn a_second_charge_is_found() {
        let audit = audit(|books| books.effects.get_mut("W-1").unwrap().charges = 2);
        assert_eq!((audit.duplicate_charges, audit.lost), (1, 0));
        assert!(!audit.passed());
    }

    /// The sums still hold: only a look at each order finds it.
    #[test]
    fn one_order_charged_twice_and_another_never_is_found() {
        let audit = audit(|books| {
            books.effects.get_mut("W-2").unwrap().charges = 2;
            books.effects.get_mut("W-1").unwrap().charges = 0;
        });
        assert_eq!(audit.charges, 2);
        assert_eq!((audit.duplicate_charges, audit.lost), (1, 1));
        assert!(!audit.passed());
    }

    #[test]
    fn a_lost_effect_is_found() {
        let losses: [fn(&mut Effects); 3] = [
            |effects| effects.parcels = 0,
            |effects| effects.emails = 0,
            |effects| effects.held = 0,
        ];
        for lose in losses {
            let audit = audit(|books| lose(books.effects.get_mut("W-1").unwrap()));
            assert_eq!(audit.lost, 1);
            assert!(!audit.passed());
        }
    }

    #[test]
    fn a_missing_refund_is_found() {
        let audit = audit(|books| books.effects.get_mut("W-2").unwrap().refunds = 0);
        assert_eq!(audit.lost, 1);
        assert!(audit.to_string().contains("charges 2: IS VIOLATED"), "{audit}");
    }

    #[test]
    fn effects_that_nothing_promised_are_found() {
        let mut audits = vec![
            audit(|books| books.effects.get_mut("W-3").unwrap().held = 1),
            audit(|books| books.effects.get_mut("W-2").unwrap().parcels = 1),
            audit(|books| books.effects.get_mut("W-1").unwrap().charged = Cents(1)),
        ];
        audits.push(audit(|books| {
            books.effects.insert("W-9".into(), Effects::default());
        }));
        for audit in audits {
            assert!(!audit.passed());
            assert_eq!(audit.lost, 0);
        }
    }

    #[test]
    fn a_line_without_an_end_is_found_and_an_order_without_one_is_lost() {
        for line in 2..=6 {
            let audit = audit(|books| drop(books.outcomes.remove(&line)));
            assert!(!audit.passed());
            assert_eq!(audit.lost, u64::from(line <= 4), "line {line}");
        }
        let failed = Outcome::Failed { detail: "terminated".into() };
        let audit = audit(|books| drop(books.outcomes.insert(2, failed)));
        assert_eq!(audit.lost, 1);
    }
}
