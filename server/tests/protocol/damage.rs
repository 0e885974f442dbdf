//! What a damaged page of the database does: to its run, and to no other.
//!
//! Time is virtual here: it passes when everybody waits.

use std::time::Duration;

use onward_proto::{RunId, v1};
use onward_server::store::{CallKind, Fault, Plan};
use tokio::{task::JoinSet, time::timeout};
use tonic::Code;

use crate::{
    stage::{Stage, database},
    world::{describe, request_id, start},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_damaged_run_is_told_and_hides_no_other() {
    const RUNS: usize = 20;
    const DAMAGED: usize = 13;
    // Runs leave memory as soon as they can.
    let stage = Stage::with_memory(database(), 0);
    let mut client = stage.client().await;
    let mut run_ids = Vec::new();
    for n in 0..RUNS {
        let started = client.start_workflow(start(&format!("w{n}"))).await.unwrap().into_inner();
        run_ids.push(started.run_id);
    }
    stage.store.damage(RunId::from_wire(&run_ids[DAMAGED]).unwrap());
    // First each by its run id alone, which goes without a look at the newest run.
    for by_run_id in [true, false] {
        let mut asked = JoinSet::new();
        for (n, run_id) in run_ids.iter().enumerate() {
            let (mut client, mut request) = (client.clone(), describe(&format!("w{n}")));
            if by_run_id {
                request.run_id = run_id.clone();
            }
            asked.spawn(async move { (n, client.describe_workflow(request).await) });
        }
        for (n, told) in timeout(PATIENCE, asked.join_all()).await.unwrap() {
            let code = told.map_or_else(|refused| refused.code(), |_| Code::Ok);
            let expected = if n == DAMAGED { Code::DataLoss } else { Code::Ok };
            assert_eq!(code, expected, "w{n}, by run id: {by_run_id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_journal_is_damaged_parks_its_run() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    let started = client.start_workflow(start("one")).await.unwrap().into_inner();
    let task = worker.task().await;
    stage.store.damage(RunId::from_wire(&started.run_id).unwrap());
    worker.need_history(&task).await;
    let parked = async {
        loop {
            match client.describe_workflow(describe("one")).await {
                Err(refused) if refused.code() == Code::DataLoss => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(PATIENCE, parked).await.unwrap();
    let mut client = stage.client().await;
    client.start_workflow(start("two")).await.unwrap();
    assert_eq!(worker.task().await.workflow_id, "two");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_gone_reads_its_journal_no_more() {
    let stage = Stage::begin();
    let mut client = stage.client().await;
    let mut worker = stage.worker().await;
    client.start_workflow(start("one")).await.unwrap();
    let task = worker.task().await;
    stage.store.faults().set_planner(|kind| match kind {
        CallKind::Read => Plan::fault(Fault::Refuse),
        _ => Plan::default(),
    });
    worker.need_history(&task).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client
        .terminate_workflow(v1::TerminateWorkflowRequest {
            workflow_id: "one".to_owned(),
            request_id: request_id(),
            ..Default::default()
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = stage.store.faults().calls();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Leases are renewed, and the due runs that cannot be read are asked for again.
    let calls = stage.store.faults().calls() - before;
    assert!(calls < 30, "{calls}");
}
