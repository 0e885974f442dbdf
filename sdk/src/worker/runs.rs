//! Which runs this worker keeps alive, and whether a task can go on with one of them.
//!
//! A task names the task that its events follow. The worker goes on only if that is the last
//! completion it sent for the very instance it has; in every other case the instance is forgotten.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use onward_proto::{RunId, v1};
use tokio::time::Instant;

use crate::machine::RunInfo;

/// A task's identity, in the order of hand-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskKey {
    pub(crate) incarnation: u64,
    pub(crate) counter: u64,
}

impl From<v1::TaskId> for TaskKey {
    fn from(id: v1::TaskId) -> Self {
        Self { incarnation: id.incarnation, counter: id.counter }
    }
}

impl From<TaskKey> for v1::TaskId {
    fn from(key: TaskKey) -> Self {
        Self { incarnation: key.incarnation, counter: key.counter }
    }
}

/// Names one life of a run in this worker; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Instance(pub(crate) u64);

/// A run that this worker has.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) instance: Instance,
    /// The thread it is pinned to.
    pub(crate) thread: usize,
    pub(crate) open: Option<OpenTask>,
    pub(crate) info: Arc<RunInfo>,
    last_sent: Option<TaskKey>,
    incarnation: u64,
    idle_since: u64,
}

/// A task that is with this worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenTask {
    pub(crate) key: TaskKey,
    pub(crate) since: Instant,
    /// Its job waits for the rest of its history.
    pub(crate) reading: Option<Reading>,
}

/// What is to be done when the rest of a history is here, beside the task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The task must yield as soon as it can.
    pub(crate) yields: bool,
}

/// An instance that a thread must drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) run: RunId,
    pub(crate) instance: Instance,
    pub(crate) thread: usize,
    pub(crate) open: Option<TaskKey>,
}

/// Where a task goes.
#[derive(Debug, PartialEq)]
pub(crate) enum Admission {
    /// On with the instance that is there.
    Continue { instance: Instance, thread: usize },
    /// From event 1, with a new instance.
    Begin { instance: Instance, thread: usize, info: Arc<RunInfo> },
    /// Nowhere: its base is not here.
    NeedHistory,
}

/// The runs of one worker.
#[derive(Debug)]
pub(crate) struct Runs {
    by_id: HashMap<RunId, Run>,
    /// Idle runs, longest idle first; entries whose stamp has passed are skipped.
    idle: VecDeque<(u64, RunId)>,
    stamp: u64,
    next_instance: u64,
    limit: usize,
    /// Instances on each thread.
    load: Vec<usize>,
    open: usize,
}

impl Runs {
    pub(crate) fn new(limit: usize, threads: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            idle: VecDeque::new(),
            stamp: 0,
            next_instance: 0,
            limit,
            load: vec![0; threads.max(1)],
            open: 0,
        }
    }

    /// Takes a task in. What must be dropped for it first comes in `gone`.
    pub(crate) fn admit(
        &mut self,
        run_id: RunId,
        task: TaskKey,
        follows: Option<TaskKey>,
        now: Instant,
        info: impl FnOnce() -> RunInfo,
        gone: &mut Option<Gone>,
    ) -> Admission {
        let open = OpenTask { key: task, since: now, reading: None };
        if let Some(run) = self.by_id.get_mut(&run_id) {
            if run.open.is_none() && follows.is_some() && run.last_sent == follows {
                run.open = Some(open);
                self.open += 1;
                run.incarnation = task.incarnation;
                run.idle_since = 0;
                return Admission::Continue { instance: run.instance, thread: run.thread };
            }
            *gone = self.remove(run_id);
        }
        if follows.is_some() {
            return Admission::NeedHistory;
        }
        let thread = (0..self.load.len()).min_by_key(|thread| self.load[*thread]).unwrap_or(0);
        self.next_instance += 1;
        let instance = Instance(self.next_instance);
        self.load[thread] += 1;
        self.open += 1;
        let info = Arc::new(info());
        self.by_id.insert(
            run_id,
            Run {
                instance,
                thread,
                open: Some(open),
                info: Arc::clone(&info),
                last_sent: None,
                incarnation: task.incarnation,
                idle_since: 0,
            },
        );
        Admission::Begin { instance, thread, info }
    }

    /// The run, if `instance` is still its life here.
    pub(crate) fn current(&self, run_id: RunId, instance: Instance) -> Option<&Run> {
        self.by_id.get(&run_id).filter(|run| run.instance == instance)
    }

    pub(crate) fn get(&self, run_id: RunId) -> Option<&Run> {
        self.by_id.get(&run_id)
    }

    /// The open task of an instance.
    pub(crate) fn open_mut(&mut self, run_id: RunId, instance: Instance) -> Option<&mut OpenTask> {
        let run = self.by_id.get_mut(&run_id).filter(|run| run.instance == instance)?;
        run.open.as_mut()
    }

    /// A completion of `task` is on its way.
    pub(crate) fn completed(&mut self, run_id: RunId, task: TaskKey) {
        if let Some(run) = self.by_id.get_mut(&run_id) {
            self.open -= usize::from(run.open.take().is_some());
            run.last_sent = Some(task);
        }
        self.rest(run_id);
        if self.idle.len() > 2 * self.by_id.len() + 64 {
            let by_id = &self.by_id;
            self.idle
                .retain(|(stamp, id)| by_id.get(id).is_some_and(|run| run.idle_since == *stamp));
        }
    }

    /// Forgets a run.
    pub(crate) fn remove(&mut self, run_id: RunId) -> Option<Gone> {
        let run = self.by_id.remove(&run_id)?;
        self.load[run.thread] -= 1;
        self.open -= usize::from(run.open.is_some());
        Some(Gone {
            run: run_id,
            instance: run.instance,
            thread: run.thread,
            open: run.open.map(|open| open.key),
        })
    }

    /// Forgets what `run_id` has here, if its open task or last sent completion is `task`.
    pub(crate) fn remove_stale(&mut self, run_id: RunId, task: TaskKey) -> Option<Gone> {
        let run = self.by_id.get(&run_id)?;
        if run.open.is_some_and(|open| open.key == task) || run.last_sent == Some(task) {
            self.remove(run_id)
        } else {
            None
        }
    }

    /// Forgets the longest idle run that is not busy, if there are more than the cache may hold.
    pub(crate) fn remove_excess(&mut self, is_busy: impl Fn(Instance) -> bool) -> Option<Gone> {
        if self.by_id.len() <= self.limit {
            return None;
        }
        for _ in 0..self.idle.len() {
            let (stamp, run_id) = self.idle.pop_front()?;
            let run = self.by_id.get(&run_id).filter(|run| run.idle_since == stamp);
            let Some(run) = run else { continue };
            if !is_busy(run.instance) {
                return self.remove(run_id);
            }
            // As if its task had ended only now.
            self.rest(run_id);
        }
        None
    }

    /// A run is the last to have become idle.
    fn rest(&mut self, run_id: RunId) {
        self.stamp += 1;
        if let Some(run) = self.by_id.get_mut(&run_id) {
            run.idle_since = self.stamp;
            self.idle.push_back((self.stamp, run_id));
        }
    }

    /// Forgets the runs of these slots that belong to another load of their lane.
    pub(crate) fn remove_claimed(&mut self, slots: &Range<u32>, incarnation: u64) -> Vec<Gone> {
        self.remove_where(|id, run| {
            slots.contains(&u32::from(id.slot().get())) && run.incarnation != incarnation
        })
    }

    /// Forgets all runs of a thread.
    pub(crate) fn remove_thread(&mut self, thread: usize) -> Vec<Gone> {
        self.remove_where(|_, run| run.thread == thread)
    }

    fn remove_where(&mut self, mut gone: impl FnMut(RunId, &Run) -> bool) -> Vec<Gone> {
        let mut ids: Vec<_> =
            self.by_id.iter().filter(|(id, run)| gone(**id, run)).map(|(id, _)| *id).collect();
        ids.sort_unstable(); // The order of a hash map must not show in what is sent.
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// The tasks that are with this worker since before `time`, on threads that move.
    pub(crate) fn open_since(
        &self,
        time: Instant,
        moves: impl Fn(usize) -> bool,
    ) -> Vec<(RunId, TaskKey)> {
        let mut tasks: Vec<_> = self
            .by_id
            .iter()
            .filter(|(_, run)| moves(run.thread))
            .filter_map(|(id, run)| Some((*id, run.open.filter(|open| open.since <= time)?.key)))
            .collect();
        tasks.sort_unstable();
        tasks
    }

    /// How many tasks are open.
    pub(crate) fn open(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use onward_proto::Slot;
    use proptest::prelude::*;

    use super::*;

    fn run(n: u64) -> RunId {
        RunId::new(1_000, n, Slot::new(n as u16))
    }

    fn task(counter: u64) -> TaskKey {
        TaskKey { incarnation: 1, counter }
    }

    fn admit(
        runs: &mut Runs,
        id: RunId,
        key: TaskKey,
        follows: Option<TaskKey>,
    ) -> (Admission, Option<Gone>) {
        let mut gone = None;
        let info = || RunInfo {
            namespace: "default".to_owned(),
            workflow_id: id.to_string(),
            run_id: id,
            workflow_type: "test".to_owned(),
        };
        (runs.admit(id, key, follows, Instant::now(), info, &mut gone), gone)
    }

    #[test]
    fn a_task_goes_on_only_after_the_last_completion_that_was_sent() {
        let mut runs = Runs::new(10, 1);
        assert!(matches!(admit(&mut runs, run(1), task(1), None).0, Admission::Begin { .. }));
        runs.completed(run(1), task(1));
        let (admission, gone) = admit(&mut runs, run(1), task(2), Some(task(1)));
        assert!(matches!(admission, Admission::Continue { instance: Instance(1), .. }));
        assert!(gone.is_none());
        runs.completed(run(1), task(2));
        let (admission, gone) = admit(&mut runs, run(1), task(4), Some(task(3)));
        assert_eq!(admission, Admission::NeedHistory);
        assert!(gone.is_some());
        assert!(runs.get(run(1)).is_none());
    }

    #[test]
    fn a_new_task_for_a_run_with_an_open_one_evicts_the_instance_first() {
        let mut runs = Runs::new(10, 1);
        admit(&mut runs, run(1), task(1), None);
        let (admission, gone) = admit(&mut runs, run(1), task(2), None);
        assert!(matches!(admission, Admission::Begin { instance: Instance(2), .. }));
        let gone = gone.unwrap();
        assert_eq!((gone.instance, gone.open), (Instance(1), Some(task(1))));
    }

    #[test]
    fn stale_evicts_only_the_instance_it_is_about() {
        let mut runs = Runs::new(10, 1);
        admit(&mut runs, run(1), task(1), None);
        runs.completed(run(1), task(1));
        admit(&mut runs, run(1), task(2), Some(task(1)));
        assert!(runs.remove_stale(run(1), task(9)).is_none());
        assert!(runs.remove_stale(run(1), task(1)).is_some());
    }

    #[test]
    fn the_longest_idle_run_leaves_a_full_cache() {
        let mut runs = Runs::new(2, 1);
        for n in 1..=3 {
            admit(&mut runs, run(n), task(n), None);
            runs.completed(run(n), task(n));
        }
        admit(&mut runs, run(1), task(4), Some(task(1)));
        runs.completed(run(1), task(4));
        assert_eq!(runs.remove_excess(|_| false).unwrap().run, run(2));
        assert!(runs.remove_excess(|_| false).is_none());
    }

    #[test]
    fn a_run_with_an_open_task_never_leaves_for_lack_of_room() {
        let mut runs = Runs::new(0, 1);
        admit(&mut runs, run(1), task(1), None);
        assert!(runs.remove_excess(|_| false).is_none());
        runs.completed(run(1), task(1));
        assert!(runs.remove_excess(|_| false).is_some());
    }

    #[test]
    fn a_busy_run_never_leaves_for_lack_of_room() {
        let mut runs = Runs::new(1, 1);
        for n in 1..=3 {
            admit(&mut runs, run(n), task(n), None);
            runs.completed(run(n), task(n));
        }
        let is_busy = |instance| instance == Instance(1);
        assert_eq!(runs.remove_excess(is_busy).unwrap().run, run(2));
        assert_eq!(runs.remove_excess(is_busy).unwrap().run, run(3));
        admit(&mut runs, run(4), task(4), None);
        assert!(runs.remove_excess(is_busy).is_none());
        assert_eq!(runs.remove_excess(|_| false).unwrap().run, run(1));
    }

    #[test]
    fn a_claim_removes_the_runs_of_its_slots_that_another_load_handed_out() {
        let mut runs = Runs::new(10, 1);
        for n in [1, 2, 3] {
            admit(&mut runs, run(n), task(n), None);
        }
        assert!(runs.remove_claimed(&(0..1024), 1).is_empty());
        let gone: Vec<_> = runs.remove_claimed(&(2..4), 7).iter().map(|gone| gone.run).collect();
        assert_eq!(gone, [run(2), run(3)]);
        assert!(runs.get(run(1)).is_some());
    }

    /// Something that the server, a thread or a full cache may do. Runs are few, so that they meet.
    #[derive(Debug, Clone)]
    enum Op {
        /// A task, on top of the last completion or from event 1.
        Task(u64, bool),
        /// A task on top of a completion that is not the last one, or was never sent.
        StrayTask(u64, u64),
        /// The open task is answered.
        Complete(u64),
        Evict(u64),
        Stale(u64, u64),
        Claim(u32),
        Shrink,
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = 0..6_u64;
        prop_oneof![
            12 => (id.clone(), prop::bool::weighted(0.8)).prop_map(|(id, on)| Op::Task(id, on)),
            1 => (id.clone(), 0..40_u64).prop_map(|(id, counter)| Op::StrayTask(id, counter)),
            12 => id.clone().prop_map(Op::Complete),
            1 => id.clone().prop_map(Op::Evict),
            2 => (id, 0..40_u64).prop_map(|(id, counter)| Op::Stale(id, counter)),
            1 => (0..6_u32).prop_map(Op::Claim),
            6 => Just(Op::Shrink),
        ]
    }

    /// A run as it should be.
    #[derive(Debug, Clone, PartialEq)]
    struct Expected {
        instance: u64,
        incarnation: u64,
        open: Option<TaskKey>,
        last_sent: Option<TaskKey>,
    }

    const LIMIT: usize = 3;

    /// The runs, and beside them what should be there.
    struct World {
        runs: Runs,
        expected: BTreeMap<u64, Expected>,
        /// Idle runs, longest idle first.
        idle: Vec<u64>,
        busy: BTreeSet<u64>,
        counter: u64,
        incarnation: u64,
        instances: u64,
    }

    impl World {
        fn key(&self, counter: u64) -> TaskKey {
            TaskKey { incarnation: self.incarnation, counter }
        }

        fn forget(&mut self, id: u64, gone: Option<Gone>) {
            let expected = self.expected.remove(&id);
            self.idle.retain(|idle| *idle != id);
            let open = expected.as_ref().and_then(|run| run.open);
            assert_eq!(gone.map(|gone| gone.instance.0), expected.map(|run| run.instance));
            assert_eq!(gone.and_then(|gone| gone.open), open);
        }

        fn play(&mut self, op: &Op) {
            match *op {
                Op::Task(id, goes_on) => {
                    let last = self.expected.get(&id).and_then(|run| run.last_sent);
                    self.task(id, last.filter(|_| goes_on));
                }
                Op::StrayTask(id, counter) => self.task(id, Some(self.key(counter))),
                Op::Complete(id) => {
                    let Some(run_here) = self.expected.get_mut(&id) else { return };
                    let Some(key) = run_here.open.take() else { return };
                    run_here.last_sent = Some(key);
                    self.idle.push(id);
                    self.runs.completed(run(id), key);
                }
                Op::Evict(id) => {
                    let gone = self.runs.remove(run(id));
                    self.forget(id, gone);
                }
                Op::Stale(id, counter) => {
                    let key = self.key(counter);
                    let gone = self.runs.remove_stale(run(id), key);
                    let is_its = |run: &Expected| [run.open, run.last_sent].contains(&Some(key));
                    if self.expected.get(&id).is_some_and(is_its) {
                        self.forget(id, gone);
                    } else {
                        assert_eq!(gone, None);
                    }
                }
                Op::Claim(from) => {
                    self.incarnation += 1;
                    let gone = self.runs.remove_claimed(&(from..1_024), self.incarnation);
                    let claimed: Vec<u64> =
                        self.expected.keys().copied().filter(|id| *id >= u64::from(from)).collect();
                    assert_eq!(gone.len(), claimed.len());
                    for (id, gone) in claimed.into_iter().zip(gone) {
                        self.forget(id, Some(gone));
                    }
                }
                Op::Shrink => self.shrink(),
            }
            self.check();
        }

        fn task(&mut self, id: u64, follows: Option<TaskKey>) {
            self.counter += 1;
            let (task, incarnation) = (self.key(self.counter), self.incarnation);
            let (admission, gone) = admit(&mut self.runs, run(id), task, follows);
            let goes_on = |run: &&mut Expected| {
                follows.is_some() && run.open.is_none() && run.last_sent == follows
            };
            if let Some(here) = self.expected.get_mut(&id).filter(goes_on) {
                let Admission::Continue { instance, .. } = admission else {
                    panic!("{admission:?}")
                };
                assert_eq!((instance.0, gone), (here.instance, None));
                (here.open, here.incarnation) = (Some(task), incarnation);
                self.idle.retain(|idle| *idle != id);
                return;
            }
            self.forget(id, gone);
            if follows.is_some() {
                assert_eq!(admission, Admission::NeedHistory);
                return;
            }
            let Admission::Begin { instance, .. } = admission else { panic!("{admission:?}") };
            assert!(instance.0 > self.instances, "an instance is never used twice");
            self.instances = instance.0;
            let (instance, open) = (instance.0, Some(task));
            self.expected.insert(id, Expected { instance, incarnation, open, last_sent: None });
        }

        /// The longest idle run that is not busy leaves; those that are busy count as idle from
        /// now.
        fn shrink(&mut self) {
            let busy = self.busy.clone();
            let gone = self.runs.remove_excess(|instance| busy.contains(&instance.0));
            if self.expected.len() <= LIMIT {
                assert_eq!(gone, None);
                return;
            }
            let is_busy = |id: &u64| busy.contains(&self.expected[id].instance);
            let asked = self.idle.iter().take_while(|id| is_busy(id)).count();
            self.idle.rotate_left(asked);
            match self.idle.first().copied().filter(|_| asked < self.idle.len()) {
                Some(id) => {
                    assert_eq!(gone.map(|gone| gone.run), Some(run(id)));
                    self.forget(id, gone);
                }
                None => assert_eq!(gone, None),
            }
        }

        fn check(&self) {
            let open = self.expected.values().filter(|run| run.open.is_some()).count();
            assert_eq!(self.runs.open(), open);
            assert_eq!(self.runs.load.iter().sum::<usize>(), self.expected.len());
            for id in 0..6 {
                let here = self.runs.get(run(id)).map(|run| Expected {
                    instance: run.instance.0,
                    incarnation: run.incarnation,
                    open: run.open.map(|open| open.key),
                    last_sent: run.last_sent,
                });
                assert_eq!(here.as_ref(), self.expected.get(&id));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn runs_come_go_on_and_leave_as_they_should_in_any_order(
            ops in prop::collection::vec(op(), 1..200),
            busy in prop::collection::btree_set(1..30_u64, 0..6),
        ) {
            let mut world = World {
                runs: Runs::new(LIMIT, 2),
                expected: BTreeMap::new(),
                idle: Vec::new(),
                busy,
                counter: 0,
                incarnation: 1,
                instances: 0,
            };
            for op in &ops {
                world.play(op);
            }
        }
    }
}
