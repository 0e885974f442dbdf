//! What is read back, in which order, and in pages.

use bytes::Bytes;
use onward_proto::{DEFAULT_NAMESPACE, NamespaceId, RunId, v1::WorkflowStatus};
use onward_server::store::*;
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use uuid::Uuid;

use crate::world::*;

fn list(status: Option<WorkflowStatus>, limit: u32) -> ListRuns {
    ListRuns { namespace_id: DEFAULT_NAMESPACE, status, before: None, limit }
}

fn ids(rows: &[RunRow]) -> Vec<RunId> {
    rows.iter().map(|row| row.run_id).collect()
}

/// A cold run that wakes at `wake_at`.
fn cold(n: u64, slot: u16, wake_at: i64) -> RunRow {
    RunRow { wake_at: WakeAt::At(at(wake_at)), ..new_run(n, slot, &format!("cold-{n}")) }
}

fn due(run: &RunRow) -> DueRun {
    let WakeAt::At(wake_at) = run.wake_at else { panic!("not cold") };
    DueRun { wake_at, run_id: run.run_id }
}

on_every_store! {
    async fn what_is_not_there_is_none(world: World) {
        let id = run_id(1, 7);
        assert_eq!(world.row(id).await, None);
        assert_eq!(world.store.load_runs(vec![id], 1).await.unwrap(), [Loaded::Missing]);
        assert_eq!(world.newest("order-1").await, None);
        let page = world.store.read_journal(id, 0, 1_000).await.unwrap();
        assert_eq!(page, JournalPage { rows: vec![], more: false });
    }

    async fn newest_runs_come_in_the_order_asked(world: World) {
        let runs: Vec<_> = (0..400).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        let mut asked: Vec<_> =
            runs.iter().rev().map(|run| (DEFAULT_NAMESPACE, run.workflow_id.clone())).collect();
        asked.insert(100, (DEFAULT_NAMESPACE, "unknown".into()));
        asked.push(asked[0].clone());
        let found = world.store.find_newest_runs(asked).await.unwrap();
        let found: Vec<_> = found.iter().map(|run| run.as_ref().map(|run| run.run_id)).collect();
        let mut expected: Vec<_> = runs.iter().rev().map(|run| Some(run.run_id)).collect();
        expected.insert(100, None);
        expected.push(expected[0]);
        assert_eq!(found, expected);
    }

    async fn no_ids_find_no_runs(world: World) {
        assert_eq!(world.store.find_newest_runs(vec![]).await.unwrap(), vec![]);
    }

    async fn the_newest_closed_run_is_found(world: World) {
        for n in 1..4 {
            let run = new_run(n, 7, "order-1");
            world.start(std::slice::from_ref(&run)).await;
            world.write(|batch| {
                batch.run_updates.push(close(run.run_id, WorkflowStatus::Completed));
            }).await;
        }
        assert_eq!(world.newest("order-1").await.unwrap().run_id, run_id(3, 7));
    }

    async fn an_open_run_is_the_newest_even_if_its_id_sorts_lower(world: World) {
        let closed = RunRow {
            status: WorkflowStatus::Completed,
            closed_at: Some(at(3)),
            ..new_run(9, 7, "order-1")
        };
        world.start(&[closed, new_run(2, 7, "order-1")]).await;
        assert_eq!(world.newest("order-1").await.unwrap().run_id, run_id(2, 7));
    }

    async fn the_newest_run_of_a_namespace_is_its_own(world: World) {
        world.start(&[new_run(1, 7, "order-1")]).await;
        let other = NamespaceId::from_uuid(Uuid::from_u128(5));
        let found = world.store.find_newest_runs(vec![(other, "order-1".into())]).await.unwrap();
        assert_eq!(found, [None]);
    }

    async fn a_journal_loads_in_order(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        for seq in 0..12 {
            world.write(|batch| {
                batch.journal.push(journal(run.run_id, seq, seq.to_string()));
            }).await;
        }
        let loaded = world.load(run.run_id).await;
        let expected: Vec<_> = (0..12).map(|seq: u32| Bytes::from(seq.to_string())).collect();
        assert_eq!(loaded.journal, expected);
    }

    async fn a_journal_with_a_gap_is_corrupt(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        world.write(|batch| batch.journal.push(journal(run.run_id, 1, "x"))).await;
        let whole = new_run(2, 7, "order-2");
        world.start(std::slice::from_ref(&whole)).await;
        let asked = vec![run.run_id, whole.run_id];
        let loaded = world.store.load_runs(asked, 1_000).await.unwrap();
        let Loaded::Corrupt { row: Some(row), reason } = &loaded[0] else { panic!("{loaded:?}") };
        assert_eq!(row.workflow_id, "order-1", "its row can be read");
        assert!(reason.contains("gap"), "{reason}");
        assert!(matches!(loaded[1], Loaded::Run(_)), "{loaded:?}");
    }

    async fn runs_load_in_the_order_asked(world: World) {
        let runs: Vec<_> = (0..300).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        world.write(|batch| {
            for run in &runs {
                batch.journal.push(journal(run.run_id, 0, run.workflow_id.clone()));
                batch.pending.push(pending(run.run_id, 5, Some(b"waits")));
            }
        }).await;
        let whole = |run: &RunRow| Loaded::Run(Box::new(LoadedRun {
            row: run.clone(),
            journal: vec![Bytes::from(run.workflow_id.clone())],
            pending: vec![(5, Bytes::from_static(b"waits"))],
        }));
        let mut left: Vec<_> = runs.iter().rev().map(|run| (run.run_id, whole(run))).collect();
        left.insert(100, (run_id(999, 7), Loaded::Missing));
        while !left.is_empty() {
            let asked = left.iter().map(|(run_id, _)| *run_id).collect();
            let loaded = world.store.load_runs(asked, u32::MAX).await.unwrap();
            assert!(!loaded.is_empty());
            let expected: Vec<_> = left.drain(..loaded.len()).map(|(_, run)| run).collect();
            assert_eq!(loaded, expected);
        }
    }

    async fn a_load_ends_behind_the_run_that_fills_it(world: World) {
        let runs: Vec<_> = (0..4).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        world.write(|batch| {
            for run in &runs {
                batch.journal.push(journal(run.run_id, 0, vec![7; 60]));
                batch.journal.push(journal(run.run_id, 1, vec![7; 40]));
            }
        }).await;
        for (most_bytes, count) in [(0, 1), (100, 1), (101, 2), (200, 2), (301, 4), (1_000, 4)] {
            let asked = runs.iter().map(|run| run.run_id).collect();
            let loaded = world.store.load_runs(asked, most_bytes).await.unwrap();
            assert_eq!(loaded.len(), count, "{most_bytes}");
        }
        assert_eq!(world.store.load_runs(vec![], 1_000).await.unwrap(), []);
    }

    async fn journal_pages_hold_what_fits(world: World) {
        let run = new_run(1, 7, "order-1");
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal = (0..10).map(|seq| journal(run.run_id, seq, vec![seq as u8; 100])).collect();
        }).await;
        let read = async |from, bytes| {
            let page = world.store.read_journal(run.run_id, from, bytes).await.unwrap();
            (page.rows.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), page.more)
        };
        assert_eq!(read(0, 250).await, (vec![0, 1], true));
        assert_eq!(read(0, 300).await, (vec![0, 1, 2], true));
        assert_eq!(read(7, 300).await, (vec![7, 8, 9], false));
        assert_eq!(read(8, 100_000).await, (vec![8, 9], false));
        assert_eq!(read(10, 100).await, (vec![], false));
    }

    async fn a_journal_page_has_at_least_one_row(world: World) {
        let run = new_run(1, 7, "order-1");
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal = (0..3).map(|seq| journal(run.run_id, seq, vec![7; 100_000])).collect();
        }).await;
        for (seq, more) in [(0, true), (1, true), (2, false)] {
            let page = world.store.read_journal(run.run_id, seq, 0).await.unwrap();
            assert_eq!(page.rows, [(seq, Bytes::from(vec![7; 100_000]))]);
            assert_eq!(page.more, more);
        }
    }

    async fn a_long_journal_is_read_to_its_end(world: World) {
        let run = new_run(1, 7, "order-1");
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal = (0..2_500).map(|seq| journal(run.run_id, seq, "x")).collect();
        }).await;
        let mut seen = vec![];
        loop {
            let page =
                world.store.read_journal(run.run_id, seen.len() as u32, 1 << 20).await.unwrap();
            seen.extend(page.rows.into_iter().map(|(seq, _)| seq));
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, (0..2_500).collect::<Vec<_>>());
    }

    async fn hot_runs_come_by_slot_and_id_in_pages(world: World) {
        let runs: Vec<_> =
            (0..30).map(|n| new_run(n, (n % 11 * 331 % 1024) as u16, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        let mut seen = vec![];
        loop {
            let page = world.store.hot_runs(0..1024, seen.last().copied(), 7).await.unwrap();
            assert!(page.len() <= 7);
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        let mut expected: Vec<_> = runs.iter().map(|run| run.run_id).collect();
        expected.sort_by_key(|run_id| (run_id.slot().get(), *run_id));
        assert_eq!(seen, expected);
    }

    async fn cold_runs_are_not_hot(world: World) {
        let never = RunRow { wake_at: WakeAt::Never, ..new_run(3, 7, "never") };
        let earliest = cold(2, 7, i64::MIN + 1);
        world.start(&[new_run(1, 7, "hot"), earliest, never]).await;
        let hot = world.store.hot_runs(0..1024, None, 10).await.unwrap();
        assert_eq!(hot, [run_id(1, 7)]);
    }

    async fn slots_are_taken_from_the_first_to_the_one_before_the_last(world: World) {
        for (n, slot) in [0, 1, 511, 512, 1022, 1023].into_iter().enumerate() {
            let n = n as u64;
            world.start(&[new_run(n, slot, &format!("hot-{n}")), cold(100 + n, slot, 5)]).await;
        }
        for (slots, hot) in [
            (0..0, vec![]),
            (0..1, vec![0]),
            (1..512, vec![1, 511]),
            (512..1023, vec![512, 1022]),
            (1023..1024, vec![1023]),
            (2..511, vec![]),
            (0..1024, vec![0, 1, 511, 512, 1022, 1023]),
        ] {
            let found = world.store.hot_runs(slots.clone(), None, 10).await.unwrap();
            let found: Vec<_> = found.iter().map(|run_id| run_id.slot().get()).collect();
            assert_eq!(found, hot, "hot of {slots:?}");
            let found = world.store.due_runs(slots.clone(), DueRun::from(at(0)), at(9), 10).await.unwrap();
            let found: Vec<_> = found.iter().map(|due| due.run_id.slot().get()).collect();
            assert_eq!(found, hot, "due of {slots:?}");
        }
    }

    async fn due_runs_come_soonest_first_within_each_slot(world: World) {
        let runs = [cold(1, 7, 300), cold(2, 7, 100), cold(3, 4, 400), cold(4, 7, 200), cold(5, 9, 50)];
        world.start(&runs).await;
        let found = world.store.due_runs(0..1024, DueRun::from(at(0)), at(1_000), 10).await.unwrap();
        assert_eq!(found, [2, 1, 3, 0, 4].map(|n| due(&runs[n])));
    }

    async fn both_ends_of_the_due_range_belong_to_it(world: World) {
        let runs: Vec<_> = (0_u64..5).map(|n| cold(n, 7, 100 + n as i64)).collect();
        world.start(&runs).await;
        let found = world.store.due_runs(0..1024, DueRun::from(at(101)), at(103), 10).await.unwrap();
        assert_eq!(found, [1, 2, 3].map(|n| due(&runs[n])));
        assert_eq!(world.store.due_runs(0..1024, DueRun::from(at(103)), at(101), 10).await.unwrap(), []);
    }

    async fn the_limit_of_due_runs_holds_for_each_slot(world: World) {
        let runs: Vec<_> =
            (0..12_u64).map(|n| cold(n, 7 + (n % 3) as u16, 100 + n as i64)).collect();
        world.start(&runs).await;
        let found = world.store.due_runs(0..1024, DueRun::from(at(0)), at(1_000), 2).await.unwrap();
        assert_eq!(found, [0, 3, 1, 4, 2, 5].map(|n| due(&runs[n])));
    }

    async fn due_runs_go_on_behind_the_last_one(world: World) {
        // Many are due at the same moment.
        let runs: Vec<_> = (0..10_u64).map(|n| cold(n, 7, 100 + n as i64 / 7)).collect();
        world.start(&runs).await;
        let mut seen = vec![];
        loop {
            let after = seen.last().copied().unwrap_or(DueRun::from(at(100)));
            let page = world.store.due_runs(7..8, after, at(101), 3).await.unwrap();
            assert!(page.len() <= 3);
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        assert_eq!(seen, runs.iter().map(due).collect::<Vec<_>>());
    }

    async fn hot_runs_are_not_due(world: World) {
        world.start(&[new_run(1, 7, "hot"), cold(2, 7, i64::MIN + 1)]).await;
        let found = world.store.due_runs(0..1024, DueRun::from(at(i64::MIN)), at(i64::MAX), 10).await.unwrap();
        assert_eq!(found.iter().map(|due| due.run_id).collect::<Vec<_>>(), [run_id(2, 7)]);
    }

    async fn a_wake_time_at_the_mark_of_hot_moves_by_one(world: World) {
        world.start(&[cold(1, 7, i64::MIN), cold(2, 7, i64::MAX)]).await;
        let row = world.row(run_id(1, 7)).await.unwrap();
        assert_eq!(row.wake_at, WakeAt::At(at(i64::MIN + 1)));
        let found = world.store.due_runs(0..1024, DueRun::from(at(i64::MIN)), at(i64::MAX), 10).await.unwrap();
        assert_eq!(found.len(), 2);
    }

    async fn wake_moves_between_hot_due_and_never(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        for (wake_at, hot, due) in [
            (WakeAt::At(at(50)), 0, 1),
            (WakeAt::Hot, 1, 0),
            (WakeAt::Never, 0, 0),
            (WakeAt::At(at(60)), 0, 1),
        ] {
            world.write(|batch| batch.run_updates.push(update(run.run_id, wake_at))).await;
            assert_eq!(world.store.hot_runs(0..1024, None, 9).await.unwrap().len(), hot);
            let found = world.store.due_runs(0..1024, DueRun::from(at(0)), at(99), 9).await.unwrap();
            assert_eq!(found.len(), due);
        }
    }

    async fn lists_come_newest_first_in_pages(world: World) {
        let mut runs: Vec<_> = (0..25).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        // Several runs that started at the same moment are parted by their ids.
        for run in &mut runs[5..15] {
            run.started_at = at(10);
        }
        for run in &mut runs[15..] {
            run.started_at = at(1_000 - run.started_at.as_micros());
        }
        world.start(&runs).await;
        let mut seen: Vec<RunRow> = vec![];
        loop {
            let before = seen.last().map(|row| (row.started_at, row.run_id));
            let page = ListRuns { before, ..list(None, 4) };
            let page = world.store.list_runs(page).await.unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        runs.sort_by_key(|run| std::cmp::Reverse((run.started_at, run.run_id)));
        assert_eq!(seen, runs);
    }

    async fn lists_know_their_status(world: World) {
        let statuses = [
            WorkflowStatus::Running,
            WorkflowStatus::Completed,
            WorkflowStatus::Failed,
            WorkflowStatus::Cancelled,
            WorkflowStatus::Terminated,
            WorkflowStatus::TimedOut,
        ];
        let runs: Vec<_> = (0..18).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        world.write(|batch| {
            for (n, run) in runs.iter().enumerate() {
                if statuses[n % 6] != WorkflowStatus::Running {
                    batch.run_updates.push(close(run.run_id, statuses[n % 6]));
                }
            }
        }).await;
        for (n, status) in statuses.into_iter().enumerate() {
            let found = world.store.list_runs(list(Some(status), 10)).await.unwrap();
            assert_eq!(ids(&found), [n + 12, n + 6, n].map(|n| runs[n].run_id));
            assert!(found.iter().all(|row| row.status == status));
        }
        assert_eq!(world.store.list_runs(list(None, 100)).await.unwrap().len(), 18);
    }

    async fn lists_show_their_namespace_only(world: World) {
        let namespace_id = NamespaceId::from_uuid(Uuid::from_u128(5));
        world.start(&[new_run(1, 7, "a"), RunRow { namespace_id, ..new_run(2, 7, "b") }]).await;
        let found = world.store.list_runs(list(None, 10)).await.unwrap();
        assert_eq!(ids(&found), [run_id(1, 7)]);
        let found = ListRuns { namespace_id, ..list(None, 10) };
        assert_eq!(ids(&world.store.list_runs(found).await.unwrap()), [run_id(2, 7)]);
    }

    async fn a_list_of_nothing_is_empty(world: World) {
        world.start(&[new_run(1, 7, "a")]).await;
        assert_eq!(world.store.list_runs(list(None, 0)).await.unwrap(), []);
        let before = Some((at(i64::MIN), run_id(0, 0)));
        let oldest = ListRuns { before, ..list(None, 9) };
        assert_eq!(world.store.list_runs(oldest).await.unwrap(), []);
    }

    async fn a_limit_of_zero_reads_nothing(world: World) {
        world.start(&[new_run(1, 7, "a"), cold(2, 7, 5)]).await;
        assert_eq!(world.store.hot_runs(0..1024, None, 0).await.unwrap(), []);
        assert_eq!(world.store.due_runs(0..1024, DueRun::from(at(0)), at(9), 0).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_run_whose_status_is_not_known_hides_no_other() {
    for mut world in [World::sqlite().await, World::postgres().await] {
        let runs: Vec<_> = (1..4).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.start(&runs).await;
        world.store.close().await;
        world.store = std::sync::Arc::new(MemoryStore::new(|| at(0)));
        let url = world.url.clone().unwrap();
        let newer = "UPDATE run SET status = 99 WHERE workflow_id = 'order-2'";
        if url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            connection.execute(newer).await.unwrap();
            connection.close().await.unwrap();
        } else {
            session(&world).await.execute(newer).await.unwrap();
        }
        world.store = world.open_again().await;

        let asked = runs.iter().map(|run| (DEFAULT_NAMESPACE, run.workflow_id.clone())).collect();
        let found = world.store.find_newest_runs(asked).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|run| run.unwrap().status).collect();
        let running = Some(WorkflowStatus::Running);
        assert_eq!(found, [running, None, running]);

        let asked = runs.iter().map(|run| run.run_id).collect();
        let loaded = world.store.load_runs(asked, 1_000).await.unwrap();
        assert!(matches!(loaded[0], Loaded::Run(_)), "{loaded:?}");
        assert!(matches!(loaded[1], Loaded::Corrupt { .. }), "{loaded:?}");
        assert!(matches!(loaded[2], Loaded::Run(_)), "{loaded:?}");

        let listed = world.store.list_runs(list(None, 10)).await.unwrap();
        assert_eq!(ids(&listed), [runs[2].run_id, runs[0].run_id]);
    }
}
