//! What a client promises: one request id over all tries, typed outcomes, clear words.
#![allow(clippy::unwrap_used)]

mod fake;

use fake::{Fake, json, run_id};
use futures_util::FutureExt as _;
use onward::{Client, Ctx, Failure, RemoteFailure, RetryHint, WorkflowError, workflow};
use onward_proto::v1::{self, WorkflowStatus};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

#[derive(Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
enum OrderError {
    #[error("rejected by {by}")]
    Rejected { by: String },
}

impl Failure for OrderError {
    fn retry(&self) -> RetryHint {
        RetryHint::Never
    }

    fn kind(&self) -> &'static str {
        "OrderError::Rejected"
    }
}

#[workflow]
async fn order(_: &Ctx, item: &str) -> Result<u32, OrderError> {
    Ok(item.len() as u32)
}

fn started() -> v1::StartWorkflowResponse {
    v1::StartWorkflowResponse { run_id: run_id(1, 5).to_wire(), started: true }
}

fn ended(outcome: v1::WorkflowOutcome) -> v1::ExecuteWorkflowResponse {
    v1::ExecuteWorkflowResponse {
        run_id: run_id(1, 5).to_wire(),
        started: true,
        outcome: Some(outcome),
    }
}

fn outcome(status: WorkflowStatus) -> v1::WorkflowOutcome {
    v1::WorkflowOutcome { status: status.into(), ..Default::default() }
}

#[tokio::test]
async fn all_tries_of_a_start_carry_one_request_id() {
    let fake = Fake::start();
    fake.script.lock().unwrap().start_answers.extend([
        Err(Status::unavailable("going away")),
        Err(Status::aborted("lost the race")),
        Ok(started()),
    ]);
    let handle = order(&fake.client, "lamp").queue("orders").start().await.unwrap();
    assert_eq!(handle.run_id(), Some(run_id(1, 5).uuid()));
    let script = fake.script.lock().unwrap();
    assert_eq!(script.starts.len(), 3);
    assert_eq!(script.starts[0].request_id.len(), 16);
    assert!(script.starts.iter().all(|start| *start == script.starts[0]));
    assert_eq!(script.starts[0].task_queue, "orders");
    assert_eq!(script.starts[0].workflow_id, handle.id());
    assert_eq!(script.starts[0].arguments, [json("\"lamp\"")]);
}

#[tokio::test]
async fn two_starts_have_two_request_ids_and_two_workflow_ids() {
    let fake = Fake::start();
    fake.script.lock().unwrap().start_answers.extend([Ok(started()), Ok(started())]);
    order(&fake.client, "lamp").start().await.unwrap();
    order(&fake.client, "lamp").start().await.unwrap();
    let script = fake.script.lock().unwrap();
    assert_ne!(script.starts[0].request_id, script.starts[1].request_id);
    assert_ne!(script.starts[0].workflow_id, script.starts[1].workflow_id);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let fake = Fake::start();
    let taken = Status::already_exists("workflow order-1 is running");
    fake.script.lock().unwrap().start_answers.push_back(Err(taken));
    let error = order(&fake.client, "lamp").id("order-1").start().await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(error.to_string(), "workflow order-1 is running");
    assert_eq!(fake.script.lock().unwrap().starts.len(), 1);
}

#[tokio::test]
async fn an_awaited_call_waits_until_its_own_run_has_closed() {
    let fake = Fake::start();
    {
        let mut script = fake.script.lock().unwrap();
        script.execute_answers.push_back(Ok(v1::ExecuteWorkflowResponse {
            run_id: run_id(1, 5).to_wire(),
            started: true,
            outcome: None,
        }));
        let closed =
            v1::WorkflowOutcome { result: Some(json("42")), ..outcome(WorkflowStatus::Completed) };
        let run_id = run_id(1, 5).to_wire();
        script.wait_answers.extend([
            Ok(v1::WaitWorkflowResultResponse { run_id: run_id.clone(), outcome: None }),
            Err(Status::unavailable("restart")),
            Ok(v1::WaitWorkflowResultResponse { run_id, outcome: Some(closed) }),
        ]);
    }
    assert_eq!(order(&fake.client, "lamp").id("order-1").await.unwrap(), 42);
    let script = fake.script.lock().unwrap();
    assert_eq!((script.executes.len(), script.waits.len()), (1, 3));
    assert!(script.waits.iter().all(|wait| wait.run_id == run_id(1, 5).to_wire()));
}

#[tokio::test]
async fn outcomes_become_typed_errors() {
    let fake = Fake::start();
    let rejected = v1::Failure {
        kind: "OrderError::Rejected".to_owned(),
        message: "rejected by ann".to_owned(),
        details: vec![json(r#"{"Rejected":{"by":"ann"}}"#)],
        ..Default::default()
    };
    let foreign = v1::Failure { message: "what?".to_owned(), ..Default::default() };
    let ann = || OrderError::Rejected { by: "ann".to_owned() };
    let with = |status, failure: &v1::Failure| v1::WorkflowOutcome {
        failure: Some(failure.clone()),
        ..outcome(status)
    };
    let broken = v1::Limit { name: "pending_timers".to_owned(), limit: 2_000, value: 2_001 };
    let refused = v1::WorkflowOutcome {
        refused: Some(broken.clone()),
        ..with(WorkflowStatus::Failed, &foreign)
    };
    let lost = WorkflowError::Lost(Box::new(RemoteFailure::from(&foreign)));
    for (outcome, error) in [
        (with(WorkflowStatus::Failed, &rejected), WorkflowError::Failed(ann())),
        (with(WorkflowStatus::Failed, &foreign), lost),
        (with(WorkflowStatus::Cancelled, &rejected), WorkflowError::Cancelled(Some(ann()))),
        (outcome(WorkflowStatus::Cancelled), WorkflowError::Cancelled(None)),
        (with(WorkflowStatus::Terminated, &foreign), WorkflowError::Terminated("what?".to_owned())),
        (outcome(WorkflowStatus::TimedOut), WorkflowError::TimedOut),
        (refused, WorkflowError::Refused(broken.into())),
    ] {
        fake.script.lock().unwrap().execute_answers.push_back(Ok(ended(outcome)));
        assert_eq!(order(&fake.client, "lamp").await.unwrap_err(), error);
    }
    let unreadable = v1::WorkflowOutcome {
        result: Some(json("\"text\"")),
        ..outcome(WorkflowStatus::Completed)
    };
    fake.script.lock().unwrap().execute_answers.push_back(Ok(ended(unreadable)));
    let error = order(&fake.client, "lamp").await.unwrap_err();
    assert!(error.to_string().starts_with("the result does not decode"), "{error}");
}

#[tokio::test]
async fn another_protocol_is_refused_with_both_versions() {
    let fake = Fake::start();
    fake.script.lock().unwrap().protocol = Some(9);
    let error = order(&fake.client, "lamp").start().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("version 0.0.1 and speaks protocol 9"), "{error}");
    assert!(error.to_string().contains("protocol 1:"), "{error}");
}

#[tokio::test]
async fn a_missing_server_is_named_at_once_with_what_to_do() {
    // A port that was free a moment ago.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let client = Client::connect(format!("127.0.0.1:{port}")).await.unwrap();
    let error = order(&client, "lamp").start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot reach http://127.0.0.1:{port}: connection refused; start one with 'onward \
             dev' or set ONWARD_ADDRESS"
        )
    );
}

#[tokio::test]
async fn a_call_that_is_used_wrongly_is_an_error_that_names_the_workflow() {
    let fake = Fake::start();
    let begun = || {
        let mut call = order(&fake.client, "lamp");
        assert!((&mut call).now_or_never().is_none());
        call
    };
    let error = begun().start().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let expected = "the call of workflow `order` is started, but was awaited before";
    assert_eq!(error.to_string(), expected);
    let error = begun().id("order-1").queue("orders").await.unwrap_err();
    let expected = "the call of workflow `order` was given an option after it was first awaited";
    assert_eq!(error.to_string(), expected);

    let done =
        v1::WorkflowOutcome { result: Some(json("4")), ..outcome(WorkflowStatus::Completed) };
    fake.script.lock().unwrap().execute_answers.push_back(Ok(ended(done)));
    let mut call = order(&fake.client, "lamp");
    assert_eq!((&mut call).await.unwrap(), 4);
    let error = call.await.unwrap_err();
    let expected = "the call of workflow `order` was awaited again after its end";
    assert_eq!(error.to_string(), expected);
}

const NOTE: onward::Signal<u32> = onward::Signal::new("note");

#[tokio::test]
async fn a_signal_goes_with_the_start_in_one_request() {
    let fake = Fake::start();
    let answer = v1::SignalWithStartWorkflowResponse {
        run_id: run_id(1, 5).to_wire(),
        ..Default::default()
    };
    fake.script.lock().unwrap().signal_start_answers.extend([
        Err(Status::unavailable("going away")),
        Ok(answer.clone()),
        Ok(answer),
    ]);
    let handle = order(&fake.client, "lamp").id("order-1").signal(NOTE, 7).start().await.unwrap();
    assert_eq!((handle.id(), handle.run_id()), ("order-1", Some(run_id(1, 5).uuid())));
    {
        let script = fake.script.lock().unwrap();
        let asked = &script.signal_starts;
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0], asked[1], "both tries are one request");
        assert_eq!(
            (asked[0].signal_name.as_str(), &asked[0].arguments[..]),
            ("note", &[json("7")][..])
        );
        let start = asked[0].start.as_ref().unwrap();
        assert_eq!((start.workflow_id.as_str(), start.arguments.len()), ("order-1", 1));
        assert_eq!(start.request_id.len(), 16);
        assert!(script.starts.is_empty() && script.signals.is_empty());
    }

    // Awaited, it waits for the run that the start reached.
    let done =
        v1::WorkflowOutcome { result: Some(json("4")), ..outcome(WorkflowStatus::Completed) };
    fake.script.lock().unwrap().wait_answers.push_back(Ok(v1::WaitWorkflowResultResponse {
        run_id: run_id(1, 5).to_wire(),
        outcome: Some(done),
    }));
    assert_eq!(order(&fake.client, "lamp").id("order-1").signal(NOTE, 7).await.unwrap(), 4);
    let script = fake.script.lock().unwrap();
    assert_eq!(script.waits[0].run_id, run_id(1, 5).to_wire());
    assert!(script.executes.is_empty());
}
