//! What a batch does, as a whole or not at all.

use bytes::Bytes;
use onward_proto::{DEFAULT_NAMESPACE, NamespaceId, v1::WorkflowStatus};
use onward_server::store::*;
use uuid::Uuid;

use crate::world::*;

on_every_store! {
    async fn a_batch_writes_rows_that_read_back_as_they_were(world: World) {
        let mut run = new_run(1, 7, "order-1");
        run.memo = Bytes::from_static(b"memo");
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal.push(journal(run.run_id, 0, "first"));
            batch.pending.push(pending(run.run_id, 3, Some(b"attempts")));
        }).await;
        let loaded = world.load(run.run_id).await;
        assert_eq!(loaded.row, run.clone());
        assert_eq!(loaded.journal, [Bytes::from_static(b"first")]);
        assert_eq!(loaded.pending, [(3, Bytes::from_static(b"attempts"))]);
    }

    async fn an_empty_batch_is_a_batch(world: World) {
        world.write(|_| {}).await;
        world.write(|_| {}).await;
    }

    async fn batches_behind_each_other_all_commit(world: World) {
        for n in 0..20 {
            let run = new_run(n, 7, &format!("order-{n}"));
            world.write(|batch| batch.journal.push(journal(run.run_id, 0, "x"))).await;
        }
        assert_eq!(world.commit_seq, 21);
    }

    async fn the_database_time_of_commits_does_not_run_back(world: World) {
        let mut last = at(0);
        for _ in 0..5 {
            let now = world.write(|_| {}).await;
            assert!(now >= last);
            last = now;
        }
        assert!(last > at(1_700_000_000_000_000));
    }

    async fn another_epoch_is_fenced(world: World) {
        let older = Batch { epoch: world.epoch - 1, ..world.batch() };
        let newer = Batch { epoch: world.epoch + 1, ..world.batch() };
        assert_eq!(world.commit(older).await.unwrap(), Committed::Fenced);
        assert_eq!(world.commit(newer).await.unwrap(), Committed::Fenced);
    }

    async fn an_unknown_shard_is_fenced(world: World) {
        let batch = Batch { shard_id: ShardId(99), ..world.batch() };
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    }

    async fn another_previous_batch_is_fenced(world: World) {
        let batch = Batch { previous: commit_id(), ..world.batch() };
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    }

    async fn a_gap_in_the_numbers_is_fenced(world: World) {
        let batch = Batch { commit_seq: world.commit_seq + 2, ..world.batch() };
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    }

    async fn a_number_that_is_taken_is_fenced(world: World) {
        let (tip, seq) = (world.tip, world.commit_seq);
        world.write(|_| {}).await;
        let batch = Batch { previous: tip, commit_seq: seq + 1, ..world.batch() };
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    }

    async fn the_same_batch_twice_is_fenced_and_written_once(world: World) {
        let mut batch = world.batch();
        batch.new_runs.push(new_run(1, 7, "order-1"));
        world.commit(batch.clone()).await.unwrap();
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
    }

    async fn a_fenced_batch_writes_nothing(world: World) {
        let (kept, lost) = (new_run(1, 7, "kept"), new_run(2, 7, "lost"));
        world.start(std::slice::from_ref(&kept)).await;
        let mut batch = Batch { previous: commit_id(), renew_lease_us: Some(99 * LEASE), ..world.batch() };
        batch.new_runs.push(lost.clone());
        batch.run_updates.push(close(kept.run_id, WorkflowStatus::Completed));
        batch.journal.push(journal(kept.run_id, 0, "x"));
        batch.pending.push(pending(kept.run_id, 1, Some(b"x")));
        let before = world.shard().await;
        assert_eq!(world.commit(batch).await.unwrap(), Committed::Fenced);
        let loaded = world.load(kept.run_id).await;
        assert_eq!(loaded, LoadedRun { row: kept.clone(), journal: vec![], pending: vec![] });
        assert_eq!(world.row(lost.run_id).await, None);
        assert_eq!(world.shard().await, before);
    }

    async fn a_refused_batch_writes_nothing_and_its_number_is_free(world: World) {
        let run = new_run(1, 7, "order-1");
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal.push(journal(run.run_id, 0, "x"));
        }).await;
        let other = new_run(2, 7, "order-2");
        world.refused(|batch| {
            batch.new_runs.push(other.clone());
            batch.run_updates.push(close(run.run_id, WorkflowStatus::Failed));
            batch.journal.push(journal(run.run_id, 0, "again"));
        }).await;
        assert_eq!(world.row(other.run_id).await, None);
        assert_eq!(world.row(run.run_id).await, Some(run.clone()));
        world.write(|batch| batch.journal.push(journal(run.run_id, 1, "y"))).await;
    }

    async fn a_second_open_run_of_a_workflow_id_is_refused(world: World) {
        world.start(&[new_run(1, 7, "order-1")]).await;
        world.refused(|batch| batch.new_runs.push(new_run(2, 7, "order-1"))).await;
    }

    async fn two_open_runs_of_a_workflow_id_in_one_batch_are_refused(world: World) {
        world.refused(|batch| {
            batch.new_runs.extend([new_run(1, 7, "order-1"), new_run(2, 7, "order-1")]);
        }).await;
        assert_eq!(world.newest("order-1").await, None);
    }

    async fn an_open_run_in_another_namespace_does_not_matter(world: World) {
        let other = RunRow {
            namespace_id: NamespaceId::from_uuid(Uuid::from_u128(5)),
            ..new_run(2, 7, "order-1")
        };
        world.start(&[new_run(1, 7, "order-1"), other]).await;
    }

    async fn the_same_run_twice_is_refused(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        world.refused(|batch| {
            batch.new_runs.push(RunRow { workflow_id: "order-2".into(), ..run.clone() });
        }).await;
    }

    async fn a_workflow_id_starts_again_after_its_close(world: World) {
        let (first, second) = (new_run(1, 7, "order-1"), new_run(2, 7, "order-1"));
        world.start(std::slice::from_ref(&first)).await;
        world.write(|batch| {
            batch.run_updates.push(close(first.run_id, WorkflowStatus::Completed));
        }).await;
        world.start(std::slice::from_ref(&second)).await;
        assert_eq!(world.newest("order-1").await.unwrap().run_id, second.run_id);
    }

    async fn a_run_closes_and_its_workflow_id_starts_again_in_one_batch(world: World) {
        let first = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&first)).await;
        let mut last = first;
        for n in 2..12 {
            let next = new_run(n, 7, "order-1");
            world.write(|batch| {
                batch.run_updates.push(close(last.run_id, WorkflowStatus::Completed));
                batch.new_runs.push(next.clone());
            }).await;
            assert_eq!(world.newest("order-1").await.unwrap().run_id, next.run_id);
            last = next;
        }
    }

    async fn many_runs_are_terminated_and_started_again_in_one_batch(world: World) {
        let old: Vec<_> = (0..300).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        let new: Vec<_> = (0..300).map(|n| new_run(1_000 + n, 7, &format!("order-{n}"))).collect();
        world.start(&old).await;
        world.write(|batch| {
            batch.new_runs.clone_from(&new);
            for run in &old {
                batch.run_updates.push(close(run.run_id, WorkflowStatus::Terminated));
            }
        }).await;
        for (old, new) in old.iter().zip(&new) {
            assert_eq!(world.row(old.run_id).await.unwrap().status, WorkflowStatus::Terminated);
            assert_eq!(world.newest(&new.workflow_id).await.unwrap().run_id, new.run_id);
        }
    }

    async fn a_run_that_starts_and_ends_in_one_batch_is_one_row(world: World) {
        let run = RunRow {
            status: WorkflowStatus::Completed,
            closed_at: Some(at(5)),
            wake_at: WakeAt::Never,
            ..new_run(1, 7, "order-1")
        };
        world.start(&[run.clone(), new_run(2, 7, "order-1")]).await;
        assert_eq!(world.row(run.run_id).await, Some(run.clone()));
        assert_eq!(world.newest("order-1").await.unwrap().run_id, run_id(2, 7));
    }

    async fn a_close_rewrites_status_time_and_requests(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        world.write(|batch| {
            batch.run_updates.push(close(run.run_id, WorkflowStatus::Failed));
        }).await;
        let expected = RunRow {
            status: WorkflowStatus::Failed,
            closed_at: Some(at(9_000)),
            wake_at: WakeAt::Never,
            history: HistorySize { events: 5, bytes: 500 },
            requests: Bytes::from_static(b"all"),
            ..run.clone()
        };
        assert_eq!(world.row(run.run_id).await, Some(expected));
        let newest = world.newest("order-1").await.unwrap();
        assert_eq!(newest.requests, Bytes::from_static(b"all"));
        assert_eq!(newest.status, Some(WorkflowStatus::Failed));
    }

    async fn an_update_without_close_leaves_the_rest_of_the_row(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        world.write(|batch| {
            batch.run_updates.push(update(run.run_id, WakeAt::At(at(77))));
        }).await;
        let expected = RunRow {
            wake_at: WakeAt::At(at(77)),
            history: HistorySize { events: 5, bytes: 500 },
            ..run.clone()
        };
        assert_eq!(world.row(run.run_id).await, Some(expected));
    }

    async fn a_closed_run_can_be_updated_again(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        let mut hot = close(run.run_id, WorkflowStatus::Completed);
        hot.wake_at = WakeAt::Hot;
        world.write(|batch| batch.run_updates.push(hot)).await;
        assert_eq!(world.row(run.run_id).await.unwrap().wake_at, WakeAt::Hot);
        world.write(|batch| {
            batch.run_updates.push(update(run.run_id, WakeAt::Never));
        }).await;
        let row = world.row(run.run_id).await.unwrap();
        assert_eq!((row.wake_at, row.status), (WakeAt::Never, WorkflowStatus::Completed));
    }

    async fn an_update_of_no_run_changes_nothing(world: World) {
        world.write(|batch| batch.run_updates.push(update(run_id(1, 7), WakeAt::Hot))).await;
        assert_eq!(world.row(run_id(1, 7)).await, None);
    }

    async fn pending_rows_are_written_over_and_removed(world: World) {
        let run = new_run(1, 7, "order-1");
        world.start(std::slice::from_ref(&run)).await;
        let id = run.run_id;
        world.write(|batch| {
            batch.pending = (0..9).map(|n| pending(id, n, Some(b"one"))).collect();
        }).await;
        world.write(|batch| {
            batch.pending = vec![
                pending(id, 2, Some(b"two")),
                pending(id, 3, None),
                pending(id, 40, None),
                pending(id, 0, Some(b"")),
            ];
        }).await;
        let loaded = world.load(id).await;
        let numbers: Vec<_> = loaded.pending.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 1, 2, 4, 5, 6, 7, 8]);
        assert_eq!(loaded.pending[0].1, Bytes::new());
        assert_eq!(loaded.pending[2].1, Bytes::from_static(b"two"));
    }

    async fn pending_rows_of_other_runs_stay(world: World) {
        let (one, two) = (new_run(1, 7, "one"), new_run(2, 7, "two"));
        world.start(&[one.clone(), two.clone()]).await;
        world.write(|batch| {
            batch.pending = [&one, &two].map(|run| pending(run.run_id, 1, Some(b"x"))).to_vec();
        }).await;
        world.write(|batch| batch.pending.push(pending(one.run_id, 1, None))).await;
        assert_eq!(world.load(one.run_id).await.pending, []);
        assert_eq!(world.load(two.run_id).await.pending.len(), 1);
    }

    async fn empty_texts_and_bytes_are_not_null(world: World) {
        let run = RunRow {
            workflow_type: String::new(),
            task_queue: String::new(),
            requests: Bytes::new(),
            ..new_run(1, 7, "")
        };
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal.push(journal(run.run_id, 0, ""));
        }).await;
        let loaded = world.load(run.run_id).await;
        assert_eq!((loaded.row, loaded.journal), (run.clone(), vec![Bytes::new()]));
        assert_eq!(world.newest("").await.unwrap().run_id, run.run_id);
    }

    async fn texts_of_all_kinds_survive(world: World) {
        for (n, text) in ["Grüße", "日本語", "a'b\"c;--", "\u{1}\t\n", "{1,NULL}", "\\x00", &"x".repeat(1_000)]
            .into_iter()
            .enumerate()
        {
            let run = RunRow { workflow_type: text.into(), ..new_run(n as u64, 7, text) };
            world.start(std::slice::from_ref(&run)).await;
            assert_eq!(world.row(run.run_id).await, Some(run.clone()));
            assert_eq!(world.newest(text).await.unwrap().run_id, run.run_id);
        }
    }

    async fn a_text_with_u_0000_is_refused(world: World) {
        world.refused(|batch| batch.new_runs.push(new_run(1, 7, "a\0b"))).await;
        world.start(&[new_run(2, 7, "a")]).await;
    }

    async fn workflow_ids_differ_by_case_and_by_trailing_space(world: World) {
        world.start(&[new_run(1, 7, "a"), new_run(2, 7, "A"), new_run(3, 7, "a ")]).await;
        assert_eq!(world.newest("A").await.unwrap().run_id, run_id(2, 7));
    }

    async fn bytes_of_all_values_survive(world: World) {
        let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let run = RunRow { requests: bytes.clone().into(), ..new_run(1, 7, "order-1") };
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal.push(journal(run.run_id, 0, bytes));
        }).await;
        let loaded = world.load(run.run_id).await;
        assert_eq!(loaded.journal[0], run.requests);
        assert_eq!(loaded.row.requests, run.requests);
    }

    async fn a_row_of_four_mebibytes_fits(world: World) {
        let run = new_run(1, 7, "order-1");
        let records = Bytes::from(vec![0xa5; 4 << 20]);
        world.write(|batch| {
            batch.new_runs.push(run.clone());
            batch.journal.push(journal(run.run_id, 0, records.clone()));
        }).await;
        assert_eq!(world.load(run.run_id).await.journal, [records]);
    }

    async fn a_batch_of_four_thousand_rows_fits(world: World) {
        let runs: Vec<_> = (0..2_000).map(|n| new_run(n, 7, &format!("order-{n}"))).collect();
        world.write(|batch| {
            batch.new_runs.clone_from(&runs);
            batch.journal = runs.iter().map(|run| journal(run.run_id, 0, "x")).collect();
            batch.pending = runs.iter().map(|run| pending(run.run_id, 1, Some(b"x"))).collect();
        }).await;
        let loaded = world.load(runs[1_999].run_id).await;
        assert_eq!((loaded.journal.len(), loaded.pending.len()), (1, 1));
    }

    async fn numbers_at_their_edges_survive(world: World) {
        let run = RunRow {
            history: HistorySize { events: i64::MAX as u64, bytes: 0 },
            started_at: at(i64::MIN + 1),
            closed_at: Some(at(i64::MAX)),
            status: WorkflowStatus::TimedOut,
            wake_at: WakeAt::Never,
            ..new_run(1, 1023, "order-1")
        };
        world.start(std::slice::from_ref(&run)).await;
        assert_eq!(world.row(run.run_id).await, Some(run.clone()));
    }

    async fn the_lease_is_renewed_inside_a_batch(world: World) {
        let before = world.shard().await;
        let now = world.write(|batch| batch.renew_lease_us = Some(60_000_000)).await;
        let after = world.shard().await;
        assert!(after.lease_until.unwrap() >= now.plus_micros(59_000_000));
        assert_eq!(ShardRow { lease_until: before.lease_until, ..after }, before);
    }

    async fn a_batch_without_renewal_leaves_the_shard_row_alone(world: World) {
        let before = world.shard().await;
        world.write(|_| {}).await;
        assert_eq!(world.shard().await, before);
    }

    async fn lanes_commit_side_by_side(world: World) {
        let _ = DEFAULT_NAMESPACE;
        let first = world.shard().await;
        assert_eq!(first.slots, 0..1024);
        let mut batches = vec![];
        for n in 0..40 {
            let mut batch = world.batch();
            batch.new_runs.push(new_run(n, 7, &format!("order-{n}")));
            batches.push(world.store.commit(batch.into()));
        }
        // All of them claim the same number: one gets it, whatever the order.
        let outcomes = futures_util::future::join_all(batches).await;
        let won = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Ok(Committed::Committed { .. })))
            .count();
        assert_eq!(won, 1);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
}
