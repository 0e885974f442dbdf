//! What the submission of a file came to.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::outcome::{Outcome, Reason};

/// How a run was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// This submission started it.
    New,
    /// An earlier submission of the same line did.
    Known,
}

/// Adds up how lines ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) started: u64,
    pub(crate) known: u64,
    completed: u64,
    rejected: BTreeMap<Reason, u64>,
    malformed: BTreeMap<u32, String>,
    failed: BTreeMap<u32, String>,
}

impl Summary {
    /// Adds the run of a line.
    pub(crate) fn add_start(&mut self, start: Start) {
        match start {
            Start::New => self.started += 1,
            Start::Known => self.known += 1,
        }
    }

    /// Adds the end of a line.
    pub(crate) fn add_end(&mut self, line: u32, outcome: Outcome) {
        match outcome {
            Outcome::Completed => self.completed += 1,
            Outcome::Rejected { reason, .. } => *self.rejected.entry(reason).or_default() += 1,
            Outcome::Malformed { detail } => drop(self.malformed.insert(line, detail)),
            Outcome::Failed { detail } => drop(self.failed.insert(line, detail)),
        }
    }

    fn rejected(&self) -> u64 {
        self.rejected.values().sum()
    }

    pub(crate) fn lines(&self) -> u64 {
        self.completed + self.rejected() + (self.malformed.len() + self.failed.len()) as u64
    }

    /// Whether every line ended as completed, rejected or malformed.
    pub(crate) fn is_clean(&self) -> bool {
        self.failed.is_empty()
    }

    /// For people, with what the ledger counted meanwhile.
    pub(crate) fn text(&self, retries: u64, elapsed: Duration) -> impl fmt::Display + '_ {
        Text { summary: self, retries, elapsed }
    }
}

struct Text<'a> {
    summary: &'a Summary,
    retries: u64,
    elapsed: Duration,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { summary, retries, elapsed } = self;
        let Summary { started, known, completed, rejected, malformed, failed } = summary;
        writeln!(f, "{} lines in {:.1} s", summary.lines(), elapsed.as_secs_f64())?;
        writeln!(f, "  runs started  {started:>5}")?;
        if *known > 0 {
            writeln!(
                f,
                "  known before  {known:>5}  their ids are taken: nothing was started again"
            )?;
        }
        writeln!(f, "  completed     {completed:>5}")?;
        writeln!(f, "  rejected      {:>5}", summary.rejected())?;
        for (reason, count) in rejected {
            writeln!(f, "                {count:>5}  {reason}")?;
        }
        writeln!(f, "  malformed     {:>5}", malformed.len())?;
        for (line, detail) in malformed {
            writeln!(f, "                       line {line}: {detail}")?;
        }
        if !failed.is_empty() {
            writeln!(f, "  FAILED        {:>5}", failed.len())?;
            for (line, detail) in failed {
                writeln!(f, "                       line {line}: {detail}")?;
            }
        }
        write!(f, "  retries       {retries:>5}  attempts of activities after their first")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(reason: Reason) -> Outcome {
        Outcome::Rejected { reason, detail: "so".into() }
    }

    #[test]
    fn every_line_is_counted_once_under_its_end() {
        let mut summary = Summary::default();
        for start in [Start::New, Start::New, Start::Known] {
            summary.add_start(start);
        }
        summary.add_end(2, Outcome::Completed);
        summary.add_end(3, rejected(Reason::Declined));
        summary.add_end(4, rejected(Reason::Declined));
        summary.add_end(5, rejected(Reason::DuplicateId));
        summary.add_end(6, Outcome::Malformed { detail: "no amount".into() });
        assert_eq!((summary.lines(), summary.rejected()), (5, 3));
        assert!(summary.is_clean());
        let text = summary.text(7, Duration::from_millis(1_500)).to_string();
        for part in [
            "5 lines in 1.5 s",
            "runs started      2",
            "known before      1",
            "completed         1",
            "rejected          3",
            "2  card declined",
            "1  order id used before",
            "malformed         1",
            "line 6: no amount",
            "retries           7",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(!text.contains("FAILED"));
    }

    #[test]
    fn a_run_that_ended_in_no_foreseen_way_is_no_rejection() {
        let mut summary = Summary::default();
        summary.add_end(2, Outcome::Failed { detail: "terminated by ann".into() });
        assert_eq!((summary.lines(), summary.rejected()), (1, 0));
        assert!(!summary.is_clean());
        let text = summary.text(0, Duration::ZERO).to_string();
        assert!(text.contains("FAILED            1"), "{text}");
        assert!(text.contains("line 2: terminated by ann"), "{text}");
    }
}
