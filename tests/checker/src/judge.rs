//! Applying rules, and adding up what they say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::log::Log;

/// One invariant.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Its short name, for example `H1`.
    pub name: &'static str,
    /// What it demands.
    pub says: &'static str,
    pub(crate) check: fn(&Log, &mut Judge),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.says)
    }
}

/// Takes down what a rule finds.
#[derive(Debug, Default)]
pub struct Judge {
    looked: u64,
    skips: bool,
    broken: Vec<String>,
}

impl Judge {
    /// The rule has looked at one more thing that could have broken it.
    pub(crate) fn look(&mut self) {
        self.looked += 1;
    }

    /// This log cannot have anything to look at: it says so itself.
    pub(crate) fn skip(&mut self) {
        self.skips = true;
    }

    /// The rule is broken.
    pub(crate) fn say(&mut self, text: impl Into<String>) {
        self.broken.push(text.into());
    }

    /// Looks at something that must be so.
    pub(crate) fn must(&mut self, holds: bool, text: impl FnOnce() -> String) {
        self.look();
        if !holds {
            self.say(text());
        }
    }
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: &'static str,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inv={} {}", self.rule, self.text)
    }
}

/// What the rules say of one log, or of many.
#[derive(Debug, Clone, Default)]
pub struct Report {
    looked: BTreeMap<&'static str, u64>,
    skipped: BTreeSet<&'static str>,
    violations: Vec<Violation>,
}

/// The sum of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every rule that was not skipped looked at something, and none is broken.
    Pass,
    /// A rule is broken.
    Fail,
    /// No rule is broken, but these had nothing to look at.
    Void(Vec<&'static str>),
}

impl Report {
    pub(crate) fn of(log: &Log, rules: &[Rule]) -> Self {
        let mut report = Self::default();
        for rule in rules {
            let mut judge = Judge::default();
            (rule.check)(log, &mut judge);
            if judge.skips {
                report.skipped.insert(rule.name);
            } else {
                report.looked.insert(rule.name, judge.looked);
            }
            report
                .violations
                .extend(judge.broken.into_iter().map(|text| Violation { rule: rule.name, text }));
        }
        report
    }

    /// Adds what was found in another log.
    pub fn absorb(&mut self, other: Self) {
        for (rule, looked) in other.looked {
            *self.looked.entry(rule).or_default() += looked;
        }
        self.skipped.extend(other.skipped);
        self.violations.extend(other.violations);
    }

    /// How many things each rule has looked at.
    pub fn looked(&self) -> &BTreeMap<&'static str, u64> {
        &self.looked
    }

    /// The rules of which no log could have had anything to look at.
    pub fn skipped(&self) -> Vec<&'static str> {
        let never = |rule: &&&'static str| !self.looked.contains_key(**rule);
        self.skipped.iter().filter(never).copied().collect()
    }

    /// What is broken.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The sum.
    pub fn verdict(&self) -> Verdict {
        if !self.violations.is_empty() {
            return Verdict::Fail;
        }
        let idle = self.looked.iter().filter(|(_, looked)| **looked == 0);
        let idle: Vec<_> = idle.map(|(rule, _)| *rule).collect();
        if idle.is_empty() { Verdict::Pass } else { Verdict::Void(idle) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RULES, check, log::Lack};

    #[test]
    fn nothing_to_look_at_is_no_pass() {
        let Verdict::Void(idle) = check(&Log::default()).verdict() else {
            panic!("an empty log proves nothing");
        };
        assert_eq!(idle.len(), RULES.len(), "{idle:?}");
    }

    #[test]
    fn a_rule_about_what_a_world_lacks_is_skipped_and_not_void() {
        let lacks = vec![Lack::Owners, Lack::LostCommits];
        let lacking = check(&Log { lacks, ..crate::fixture::good() });
        assert_eq!(lacking.skipped(), ["O3", "O4"]);
        assert_eq!(lacking.verdict(), Verdict::Pass, "{lacking:#?}");
        // A world that has it, and nothing of it to look at, does not hide behind another one.
        let mut idle = lacking.clone();
        let empty = Log { owners: Vec::new(), left: Vec::new(), ..crate::fixture::good() };
        idle.absorb(check(&empty));
        assert_eq!(idle.skipped(), [""; 0]);
        assert_eq!(idle.verdict(), Verdict::Void(vec!["O3", "O4"]));
    }

    #[test]
    fn what_one_log_lacks_another_may_have() {
        let mut report = check(&Log::default());
        report.absorb(check(&crate::fixture::good()));
        assert_eq!(report.verdict(), Verdict::Pass, "{report:#?}");
    }
}
