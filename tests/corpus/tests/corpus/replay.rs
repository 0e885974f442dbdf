//! The saved histories against today's code.

use onward::{
    Replayer,
    machine::{Completion, LocalOutcome, Machine, Progress, RunInfo, Task},
};
use onward_corpus::{
    Difference, STORIES, Workflows, entry, histories, options, record_all, replayer, root, text,
};
use onward_proto::{
    RunId,
    v1::{
        Failure, History, HistoryEvent, MarkerKind, WorkflowExecutionStarted,
        WorkflowTaskCompleted, history_event::Attributes,
    },
};

use crate::same;

/// A longer history is looked at in so many places.
const SAMPLES: usize = 20;
const LONG: usize = 200;

/// A completed task of a history.
struct Done<'a> {
    /// Where what it took begins.
    from: usize,
    /// What it took; for the first task, event 1 leads.
    taken: Vec<HistoryEvent>,
    /// Where its own event stands.
    place: usize,
    completed: &'a WorkflowTaskCompleted,
    commands: &'a [HistoryEvent],
}

impl Done<'_> {
    /// Where the next one's begins.
    fn end(&self) -> usize {
        self.place + 1 + self.commands.len()
    }
}

pub(crate) fn started(history: &History) -> &WorkflowExecutionStarted {
    let Some(Attributes::WorkflowExecutionStarted(started)) = &history.events[0].attributes else {
        panic!("a history begins with event 1");
    };
    started
}

fn is_fact(event: &HistoryEvent) -> bool {
    !matches!(
        event.attributes,
        Some(Attributes::WorkflowExecutionStarted(_) | Attributes::WorkflowTaskFailed(_))
    )
}

fn tasks(history: &History) -> Vec<Done<'_>> {
    let mut tasks: Vec<Done<'_>> = Vec::new();
    for (place, event) in history.events.iter().enumerate() {
        let Some(Attributes::WorkflowTaskCompleted(completed)) = &event.attributes else {
            continue;
        };
        let from = tasks.last().map_or(0, Done::end);
        let mut taken = history.events[from..place].to_vec();
        for _ in 0..completed.untaken_facts {
            let last = taken.iter().rposition(is_fact).unwrap();
            taken.remove(last);
        }
        let commands = &history.events[place + 1..][..completed.command_events as usize];
        tasks.push(Done { from, taken, place, completed, commands });
    }
    tasks
}

/// The tasks to look at.
fn some<T>(history: &History, all: Vec<T>) -> Vec<T> {
    let step = if history.events.len() < LONG { 1 } else { all.len().div_ceil(SAMPLES) };
    all.into_iter().step_by(step).collect()
}

fn machine(history: &History) -> Machine {
    let started = started(history);
    let info = RunInfo {
        namespace: "default".to_owned(),
        workflow_id: started.workflow_id.clone(),
        run_id: RunId::from_wire(&started.run_id).unwrap(),
        workflow_type: started.workflow_type.clone(),
    };
    let entry = entry(&started.workflow_type).unwrap_or_else(|| panic!("no {info:?} here"));
    Machine::new(&entry, options(&started.workflow_type), info)
}

/// Does a task live, with the outcomes that its local activities had.
fn advance(machine: &mut Machine, task: &Done<'_>, events: Vec<HistoryEvent>) -> Completion {
    for event in task.commands {
        let Some(Attributes::MarkerRecorded(marker)) = event.attributes.clone() else { continue };
        if marker.kind() != MarkerKind::LocalActivity {
            continue;
        }
        let (cause, attempts) = (marker.cause(), marker.attempts);
        let outcome = match marker.result {
            Some(result) => LocalOutcome::Completed { result, attempts },
            // What it was is not recorded; a failure is what the code can always read.
            None if marker.refused.is_some() => {
                LocalOutcome::Failed { failure: Some(Failure::default()), cause, attempts }
            }
            None => LocalOutcome::Failed { failure: marker.failure, cause, attempts },
        };
        let progress = machine.local_activity_done(marker.number, outcome).unwrap();
        assert!(matches!(progress, Progress::Waiting), "no task is open");
    }
    let progress = machine.run_task(Task {
        task_id: task.completed.task_id.unwrap(),
        handed_out_at_us: task.completed.handed_out_at_us,
        events,
    });
    match progress.unwrap_or_else(|failure| panic!("{}", failure.failure.message)) {
        Progress::Completed(completion) => completion,
        Progress::Waiting => match machine.yield_task().unwrap() {
            Progress::Completed(completion) => completion,
            Progress::Waiting => panic!("a task is open"),
        },
    }
}

/// What a task came to against what history says, all payloads, times and options included.
fn check(what: &str, history: &History, task: &Done<'_>, completion: &Completion) {
    let at = task.commands.first().map_or(0, |event| event.event_id);
    let queue = &started(history).task_queue;
    if let Some(difference) = same::difference(&completion.commands, task.commands, queue) {
        panic!("{what}, the task whose commands begin at event {at}: {difference}");
    }
    assert_eq!(
        completion.more && !completion.closed,
        task.completed.more,
        "{what}: another task is owed after event {at}"
    );
    if task.from == 0 {
        assert_eq!(completion.sdk_flags, task.completed.sdk_flags, "{what}");
    }
}

#[test]
fn every_task_asks_for_what_it_asked_for_then_warm_and_cold() {
    let mut looked = 0;
    for (path, history) in histories() {
        let what = path.display().to_string();
        let mut warm = machine(&history);
        let all = tasks(&history);
        for task in &all {
            let completion = advance(&mut warm, task, task.taken.clone());
            check(&format!("{what}, warm"), &history, task, &completion);
        }
        for task in some(&history, all) {
            let mut events = history.events[..task.from].to_vec();
            events.extend(task.taken.iter().cloned());
            let completion = advance(&mut machine(&history), &task, events);
            check(&format!("{what}, cold"), &history, &task, &completion);
            looked += 1;
        }
    }
    assert!(looked > 100, "{looked} tasks are not the corpus");
}

#[test]
fn every_history_replays_and_every_part_of_one_that_ends_with_a_task() {
    let mut looked = 0;
    for (path, history) in histories() {
        let replayer = replayer(&started(&history).workflow_type);
        let ends: Vec<usize> = tasks(&history).iter().map(Done::end).collect();
        let mut ends = some(&history, ends);
        ends.push(history.events.len());
        for end in ends {
            let part = History { events: history.events[..end].to_vec() };
            if let Err(error) = replayer.replay(&part) {
                panic!("{}, {end} events: {error}", path.display());
            }
            looked += 1;
        }
    }
    assert!(looked > 150, "{looked} replays are not the corpus");
}

/// As users have it in their tests.
#[test]
fn a_folder_of_histories_replays() {
    let replayer = Replayer::new().workflows::<Workflows>();
    let mut files = 0;
    for folder in std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.is_dir() {
            files += replayer.replay_dir(folder).unwrap();
        }
    }
    assert_eq!(files, histories().len());
}

#[test]
fn each_story_has_a_history_and_each_history_is_as_it_would_be_written() {
    let saved = histories();
    for story in STORIES {
        let is_its = |path: &std::path::Path| path.file_stem().unwrap() == story.name;
        assert!(saved.iter().any(|(path, _)| is_its(path)), "nobody has recorded {}", story.name);
    }
    for (path, history) in saved {
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, text(&history), "{}", path.display());
    }
}

#[test]
fn a_story_that_is_recorded_again_is_the_same_and_what_is_saved_stays() {
    let out = tempfile::tempdir().unwrap();
    let first = record_all(out.path(), false).unwrap();
    assert_eq!(first, STORIES.iter().map(|it| (it.name, Difference::New)).collect::<Vec<_>>());

    let name = STORIES[0].name;
    let file = out.path().join(env!("CARGO_PKG_VERSION")).join(name).with_extension("json");
    std::fs::write(&file, "kept for ever").unwrap();
    assert_eq!(record_all(out.path(), false).unwrap(), [(name, Difference::Kept)]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept for ever");

    assert_eq!(record_all(out.path(), true).unwrap(), [(name, Difference::Replaced)]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text(&STORIES[0].record()));
}
