//! What a run adds up to.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use onward_checker::{
    Log, Report, Verdict,
    log::{Call, Outcome},
};

use crate::{Options, Trouble};

/// What a run adds up to.
#[derive(Debug)]
pub struct Summary {
    pub(crate) options: Options,
    pub(crate) report: Report,
    pub(crate) log: Log,
    pub(crate) troubles: BTreeMap<Trouble, u64>,
    pub(crate) programs: u64,
    pub(crate) recoveries: Vec<Duration>,
    /// What is wrong besides.
    pub(crate) wrong: Vec<String>,
    /// Logs and data, which stay if something is wrong.
    pub(crate) dir: PathBuf,
    pub(crate) wall: Duration,
}

impl Summary {
    /// What is wrong, for people: a broken rule, or one that had nothing to look at, or a trouble
    /// that never came.
    pub fn wrong(&self) -> Option<String> {
        let violations = self.report.violations().iter().map(ToString::to_string);
        let wrong: Vec<_> = violations.chain(self.wrong.iter().cloned()).take(20).collect();
        if !wrong.is_empty() {
            return Some(format!(
                "{}\nlogs and data are in {}",
                wrong.join("\n"),
                self.dir.display()
            ));
        }
        let mut idle = match self.report.verdict() {
            Verdict::Void(idle) => idle.into_iter().map(str::to_owned).collect(),
            Verdict::Pass | Verdict::Fail => Vec::new(),
        };
        let never = self.troubles.iter().filter(|(_, count)| **count == 0);
        idle.extend(never.map(|(trouble, _)| format!("{trouble:?}")));
        (!idle.is_empty()).then(|| format!("VOID: nothing was seen of {idle:?}"))
    }

    /// What could not be done on this machine.
    pub fn skipped(&self) -> Option<&'static str> {
        let full = self.troubles.contains_key(&Trouble::FullDisk);
        (!full).then_some("a full disk: this process may not mount a small one")
    }

    /// How often each trouble came.
    pub fn troubles(&self) -> &BTreeMap<Trouble, u64> {
        &self.troubles
    }

    /// How many things each rule of the checker has looked at.
    pub fn looked(&self) -> &BTreeMap<&'static str, u64> {
        self.report.looked()
    }

    /// The rules of the checker that a run like this has nothing to look at for.
    pub fn rules_skipped(&self) -> Vec<&'static str> {
        self.report.skipped()
    }

    fn count(&self, kinds: &[Trouble]) -> u64 {
        kinds.iter().filter_map(|kind| self.troubles.get(kind)).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Trouble::{
            CrashDatabase, CutBatch, DelayLink, EatConnections, EndBackends, FreezeServer,
            FreezeWorker, FullDisk, KillBackend, KillServer, KillWorker, LateBatch, LockTable,
            ReadOnly, ResetLink, RivalServer, StallLink, StopServer,
        };
        let changes = self.log.operations.iter().filter(|one| one.call != Call::Describe);
        let acked = changes.clone().filter(|one| matches!(one.outcome, Outcome::Ok(_))).count();
        let unknown = changes.filter(|one| one.outcome == Outcome::Unknown).count();
        let events = self.log.runs.iter().map(|run| run.history.len()).sum::<usize>();
        let mut recoveries = self.recoveries.clone();
        recoveries.sort();
        write!(
            f,
            "CHAOS seed={} store={} programs={} runs={} events={events} attempts={} \
             acked={acked} unknown={unknown} batches={} server_kills={} server_stops={} rivals={} \
             worker_kills={} pauses={} net={} cut_batches={} db_kills={} db_sessions={} \
             read_only={} locks={} full_disks={} recover_max={:.1}s violations={} wall={:.0}s",
            self.options.seed,
            self.options.store,
            self.programs,
            self.log.runs.len(),
            self.log.executions.len(),
            self.log.batches.len(),
            self.count(&[KillServer]),
            self.count(&[StopServer]),
            self.count(&[RivalServer]),
            self.count(&[KillWorker]),
            self.count(&[FreezeServer, FreezeWorker]),
            self.count(&[ResetLink, StallLink, DelayLink]),
            self.count(&[CutBatch, LateBatch]),
            self.count(&[CrashDatabase, KillBackend]),
            self.count(&[EndBackends, EatConnections]),
            self.count(&[ReadOnly]),
            self.count(&[LockTable]),
            self.count(&[FullDisk]),
            recoveries.last().map_or(0.0, Duration::as_secs_f64),
            self.report.violations().len() + self.wrong.len(),
            self.wall.as_secs_f64()
        )
    }
}
