//! Clients: they start programs, send what those wait for, and take down every answer.

use std::time::Duration;

use onward::{Client, Code, RpcError};
use onward_checker::log::{
    Call, Conflict, Ending, Operation, Outcome, Read, Refusal, Reply, Reuse, Shown, fingerprint,
};
use onward_proto::RunId;
use onward_proto::v1::{
    self, HistoryEvent, WorkflowOutcome, WorkflowStatus, history_event::Attributes,
};
use onward_server::store::Store;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    besides::Besides,
    book::Book,
    interpreter::gate_name,
    judge::{Ended, Seen},
    program::{Finish, Program},
};

/// How quickly customers act.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Longest wait before a start.
    pub start: Duration,
    /// Longest wait before each thing that follows.
    pub next: Duration,
    /// Between two looks at how far a run has come.
    pub look: Duration,
    /// Longest wait before a request is made again.
    pub again: Duration,
}

/// A run to be started, and what is to come of it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its workflow id.
    pub workflow_id: String,
    /// Its program.
    pub program: Program,
}

/// One client with a will of its own.
#[derive(Debug, Clone)]
pub struct Customer {
    /// Its name in the log.
    pub name: String,
    /// Its way to the server.
    pub client: Client,
    /// The queue of its programs.
    pub queue: String,
    /// Where it takes down what happens.
    pub book: Book,
    /// How quickly it acts.
    pub pace: Pace,
    /// What else it knows and does.
    pub besides: Besides,
}

/// Looks at a run, of one who looks again whenever something happens in it.
const LOOKS: u32 = 12;
/// Who noticed that something happens in a run acts within this time.
const AT_ONCE: Duration = Duration::from_millis(30);

impl Customer {
    /// Waits until the server has been seen: a client that never saw one gives up at once.
    pub async fn arrive(&self) {
        let look = v1::ListWorkflowsRequest { page_size: 1, ..Default::default() };
        let ask = || {
            self.client
                .call(&look, |mut service, look| async move { service.list_workflows(look).await })
        };
        while ask().await.is_err() {
            sleep(self.pace.look).await;
        }
    }

    /// Starts a program, sends what it waits for, and judges how it ends.
    pub async fn order(&self, order: Order, mut rng: fastrand::Rng) {
        sleep(up_to(&mut rng, self.pace.start)).await;
        self.arrive().await;
        let wrong = self.serve(&order, &mut rng).await.err();
        self.book.ending(Ending { workflow_id: order.workflow_id, wrong });
    }

    async fn serve(&self, order: &Order, rng: &mut fastrand::Rng) -> Result<(), String> {
        let run_id = self.start(order, rng).await?;
        let id = &order.workflow_id;
        match &self.besides.away {
            Some(store) if order.program.needs_nobody() => {
                self.stay_away(store.as_ref(), run_id).await?;
            }
            _ => self.attend(order, run_id, rng).await?,
        }
        let ended = self.result(id, run_id).await?;
        order.program.judge(&ended)?;
        self.read(id, run_id).await
    }

    /// Waits until the run has closed without a word to any server.
    async fn stay_away(&self, store: &dyn Store, run_id: Uuid) -> Result<(), String> {
        let run_id = RunId::from_wire(&bytes(run_id)).map_err(|error| error.to_string())?;
        loop {
            let row = store.read_run(run_id).await.map_err(|error| error.to_string())?;
            let row = row.ok_or("its run is gone")?;
            if row.status != WorkflowStatus::Running {
                return Ok(());
            }
            sleep(self.pace.look).await;
        }
    }

    /// Sends what a run waits for, and more than that; looks on meanwhile.
    async fn attend(
        &self,
        order: &Order,
        run_id: Uuid,
        rng: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let id = &order.workflow_id;
        // The senders go on beside each other; each one's signals come in its own order.
        let (mut news_rng, mut noise_rng, mut look_rng) = (rng.fork(), rng.fork(), rng.fork());
        let (watches, looks) = (rng.u8(0..3) == 0, rng.bool());
        let news = async {
            for value in 1..=order.program.receives() {
                sleep(up_to(&mut news_rng, self.pace.next)).await;
                self.signal(id, run_id, "news", value, &mut news_rng).await?;
            }
            Ok::<(), String>(())
        };
        let noise = async {
            let sender = Self { name: format!("{}-noise", self.name), ..self.clone() };
            // Who notices what happens in the run is heard when it is about to go on, or to end.
            let each = if self.besides.cue.is_some() { 4 } else { 1 };
            for value in 1..=each * order.program.unread {
                self.wait(run_id, &mut noise_rng).await;
                // The run may have closed by then.
                let _ = sender.signal(id, run_id, "noise", value, &mut noise_rng).await;
            }
        };
        let stop = async {
            if let Some(step) = order.program.waits_for_cancel() {
                self.until_gate(id, run_id, step).await?;
                self.cancel(id, run_id, rng).await?;
            }
            if order.program.finish == Finish::UntilTerminated {
                self.until_gate(id, run_id, 0).await?;
                self.terminate(id, Some(run_id), rng).await?;
            }
            Ok::<(), String>(())
        };
        // Somebody looks on from the beginning, or reads what happened when it has.
        let watch = async { if watches { self.read(id, run_id).await } else { Ok(()) } };
        let look = async {
            let looker = Self { name: format!("{}-looks", self.name), ..self.clone() };
            let looks = if looks && self.besides.cue.is_some() { LOOKS } else { 0 };
            for _ in 0..looks {
                self.wait(run_id, &mut look_rng).await;
                if looker.describe(id).await.is_some_and(|shown| shown != WorkflowStatus::Running) {
                    break;
                }
            }
        };
        let (sent, (), stopped, watched, ()) = tokio::join!(news, noise, stop, watch, look);
        watched?;
        // A run whose time was up before that needs neither.
        if !matches!(order.program.finish, Finish::UntilTimedOut { .. }) {
            sent.and(stopped)?;
        }
        Ok(())
    }

    /// Waits for the next thing to do: some time, or just until something happens in the run.
    async fn wait(&self, run_id: Uuid, rng: &mut fastrand::Rng) {
        let (some_time, at_once) = (up_to(rng, self.pace.next), up_to(rng, AT_ONCE));
        let Some(cue) = &self.besides.cue else { return sleep(some_time).await };
        let skips = rng.u8(0..3);
        let happens = async {
            for _ in 0..=skips {
                cue.come(run_id).await;
            }
        };
        if timeout(some_time, happens).await.is_ok() {
            sleep(at_once).await;
        }
    }

    /// Asks for a start until it is known what came of it.
    async fn start(&self, order: &Order, rng: &mut fastrand::Rng) -> Result<Uuid, String> {
        let run_timeout_us = match order.program.finish {
            Finish::UntilTimedOut { ms } => ms as i64 * 1_000,
            Finish::Return | Finish::Fail | Finish::UntilCancelled | Finish::UntilTerminated => 0,
        };
        let arguments = vec![json(&order.program)];
        let request = v1::StartWorkflowRequest {
            workflow_id: order.workflow_id.clone(),
            workflow_type: "interpret".to_owned(),
            task_queue: self.queue.clone(),
            arguments,
            run_timeout_us,
            request_id: bytes(request_id(rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        let call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };
        self.twice(rng, &order.workflow_id, call, &request.request_id.clone(), || {
            self.started(&request)
        })
        .await
        .map_err(|error| format!("its start: {error}"))
    }

    pub(crate) async fn started(
        &self,
        request: &v1::StartWorkflowRequest,
    ) -> Result<(Uuid, bool), RpcError> {
        let answer = self.client.call(request, |mut service, request| async move {
            service.start_workflow(request).await
        });
        answer.await.map(|answer| (uuid(&answer.run_id), answer.started))
    }

    async fn signal(
        &self,
        workflow_id: &str,
        run_id: Uuid,
        name: &str,
        value: u32,
        rng: &mut fastrand::Rng,
    ) -> Result<Uuid, String> {
        let request = v1::SignalWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            run_id: bytes(run_id),
            signal_name: name.to_owned(),
            arguments: vec![json(&value)],
            request_id: bytes(request_id(rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        let call = Call::Signal { run_id: Some(run_id) };
        self.twice(rng, workflow_id, call, &request.request_id.clone(), || async {
            let answer = self.client.call(&request, |mut service, request| async move {
                service.signal_workflow(request).await
            });
            answer.await.map(|answer| (uuid(&answer.run_id), false))
        })
        .await
        .map_err(|error| format!("signal {value}: {error}"))
    }

    async fn cancel(
        &self,
        workflow_id: &str,
        run_id: Uuid,
        rng: &mut fastrand::Rng,
    ) -> Result<Uuid, String> {
        let request = v1::RequestCancelWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            run_id: bytes(run_id),
            request_id: bytes(request_id(rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        let call = Call::Cancel { run_id: Some(run_id) };
        self.twice(rng, workflow_id, call, &request.request_id.clone(), || async {
            let answer = self.client.call(&request, |mut service, request| async move {
                service.request_cancel_workflow(request).await
            });
            answer.await.map(|answer| (uuid(&answer.run_id), false))
        })
        .await
        .map_err(|error| format!("its cancel request: {error}"))
    }

    pub(crate) async fn terminate(
        &self,
        workflow_id: &str,
        run_id: Option<Uuid>,
        rng: &mut fastrand::Rng,
    ) -> Result<Uuid, String> {
        let request = v1::TerminateWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            run_id: run_id.map(bytes).unwrap_or_default(),
            request_id: bytes(request_id(rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        let call = Call::Terminate { run_id };
        self.twice(rng, workflow_id, call, &request.request_id.clone(), || async {
            let answer = self.client.call(&request, |mut service, request| async move {
                service.terminate_workflow(request).await
            });
            answer.await.map(|answer| (uuid(&answer.run_id), false))
        })
        .await
        .map_err(|error| format!("its termination: {error}"))
    }

    /// Makes a request, and now and then the same one again. Sometimes somebody looks while it is
    /// under way.
    pub(crate) async fn twice<F, Fut>(
        &self,
        rng: &mut fastrand::Rng,
        workflow_id: &str,
        call: Call,
        request_id: &[u8],
        ask: F,
    ) -> Result<Uuid, RpcError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<(Uuid, bool), RpcError>>,
    {
        let asks = 1 + u32::from(rng.u8(0..4) == 0);
        let mut first = None;
        for n in 0..asks {
            if n > 0 {
                sleep(up_to(rng, self.pace.again)).await;
            }
            let began_us = self.book.now_us();
            let answer = async { (self.patiently(ask()).await, self.book.now_us()) };
            let (answer, ended_us) = if n == 0 && self.besides.cue.is_some() && rng.u8(0..3) == 0 {
                let look = async {
                    sleep(up_to(rng, AT_ONCE)).await;
                    let looker = Self { name: format!("{}-beside", self.name), ..self.clone() };
                    looker.describe(workflow_id).await;
                };
                tokio::join!(answer, look).0
            } else {
                answer.await
            };
            let outcome = match &answer {
                Ok((run_id, started)) => {
                    Outcome::Ok(Reply { run_id: *run_id, started: *started, shown: None })
                }
                Err(error) => outcome_of(error),
            };
            self.book.operation(Operation {
                process: if n == 0 { self.name.clone() } else { format!("{}-again", self.name) },
                workflow_id: workflow_id.to_owned(),
                request_id: Some(uuid(request_id)),
                call,
                began_us,
                ended_us,
                outcome,
            });
            first.get_or_insert(answer);
        }
        first.expect("it was asked once at least").map(|(run_id, _)| run_id)
    }

    /// Waits for an answer, but no longer than it has patience.
    async fn patiently<T>(
        &self,
        answer: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        let Some(patience) = self.besides.patience else { return answer.await };
        let given_up = |_| Err(RpcError::new(Code::DeadlineExceeded, "nobody answers"));
        timeout(patience, answer).await.unwrap_or_else(given_up)
    }

    /// Looks at the newest run of an id, and tells how it stands.
    pub(crate) async fn describe(&self, workflow_id: &str) -> Option<WorkflowStatus> {
        let request = v1::DescribeWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            ..Default::default()
        };
        let began_us = self.book.now_us();
        let answer = self.client.call(&request, |mut service, request| async move {
            service.describe_workflow(request).await
        });
        let (outcome, status) = match self.patiently(answer).await {
            Ok(answer) => {
                let info = answer.info.unwrap_or_default();
                let shown = Shown {
                    status: info.status(),
                    events: info.history_events,
                    closed_at_us: info.closed_at_us,
                };
                let run_id = uuid(&info.run_id);
                let reply = Reply { run_id, started: false, shown: Some(shown) };
                (Outcome::Ok(reply), Some(shown.status))
            }
            Err(error) => (outcome_of(&error), None),
        };
        self.book.operation(Operation {
            process: self.name.clone(),
            workflow_id: workflow_id.to_owned(),
            request_id: None,
            call: Call::Describe,
            began_us,
            ended_us: self.book.now_us(),
            outcome,
        });
        status
    }

    /// Waits until a run has come to the gate of a step, by its history.
    async fn until_gate(&self, workflow_id: &str, run_id: Uuid, step: u32) -> Result<(), String> {
        let name = gate_name(step);
        loop {
            let events = self.history(workflow_id, run_id, false).await?;
            let gates = events.iter().filter_map(|event| match &event.attributes {
                Some(Attributes::ActivityScheduled(gate)) if gate.summary == name => {
                    Some(gate.number)
                }
                _ => None,
            });
            let gates: Vec<_> = gates.collect();
            let passed = events.iter().any(|event| match &event.attributes {
                Some(Attributes::ActivityCompleted(done)) => gates.contains(&done.number),
                _ => false,
            });
            if passed {
                return Ok(());
            }
            let ends = |event: &HistoryEvent| {
                matches!(event.attributes, Some(Attributes::WorkflowExecutionTimedOut(_)))
            };
            if events.last().is_some_and(ends) {
                return Err(format!("its time was up before {name}"));
            }
            sleep(self.pace.look).await;
        }
    }

    /// Reads a history, page by page, and takes down what it got.
    async fn history(
        &self,
        workflow_id: &str,
        run_id: Uuid,
        follow: bool,
    ) -> Result<Vec<HistoryEvent>, String> {
        let mut request = v1::GetWorkflowHistoryRequest {
            workflow_id: workflow_id.to_owned(),
            run_id: bytes(run_id),
            follow,
            max_bytes: 2_000,
            ..Default::default()
        };
        let began_us = self.book.now_us();
        let mut events = Vec::new();
        loop {
            let page = self.client.call(&request, |mut service, request| async move {
                service.get_workflow_history(request).await
            });
            let page = page.await.map_err(|error| format!("its history: {error}"))?;
            events.extend(page.events);
            if page.next_page_token.is_empty() || page.at_end && !follow {
                break;
            }
            request.page_token = page.next_page_token;
        }
        self.book.read(Read {
            run_id,
            began_us,
            ended_us: self.book.now_us(),
            events: events.iter().map(fingerprint).collect(),
            followed: follow,
        });
        Ok(events)
    }

    /// Follows a history to its end.
    async fn read(&self, workflow_id: &str, run_id: Uuid) -> Result<(), String> {
        self.history(workflow_id, run_id, true).await.map(drop)
    }

    /// Waits for the result of a run.
    async fn result(&self, workflow_id: &str, run_id: Uuid) -> Result<Ended, String> {
        let request = v1::WaitWorkflowResultRequest {
            workflow_id: workflow_id.to_owned(),
            run_id: bytes(run_id),
            ..Default::default()
        };
        loop {
            let answer = self.client.call(&request, |mut service, request| async move {
                service.wait_workflow_result(request).await
            });
            let answer = answer.await.map_err(|error| format!("its result: {error}"))?;
            if let Some(outcome) = answer.outcome {
                return ended(&outcome);
            }
        }
    }
}

fn outcome_of(error: &RpcError) -> Outcome {
    match error.code() {
        Code::AlreadyExists => Outcome::Refused(Refusal::AlreadyExists),
        Code::NotFound | Code::FailedPrecondition => Outcome::Refused(Refusal::NotOpen),
        Code::InvalidArgument => Outcome::Refused(Refusal::Invalid),
        Code::ResourceExhausted => Outcome::Refused(Refusal::Busy),
        _ => Outcome::Unknown,
    }
}

fn ended(outcome: &WorkflowOutcome) -> Result<Ended, String> {
    let status = outcome.status();
    let seen: Vec<Seen> = match (&outcome.result, status) {
        (Some(result), WorkflowStatus::Completed) => serde_json::from_slice(&result.data)
            .map_err(|error| format!("its result is {result:?}: {error}"))?,
        _ => Vec::new(),
    };
    Ok(Ended { status, seen })
}

pub(crate) fn json(value: &impl serde::Serialize) -> v1::Payload {
    let data = serde_json::to_vec(value).expect("programs are plain data").into();
    v1::Payload { content_type: "json".to_owned(), data, ..Default::default() }
}

pub(crate) fn request_id(rng: &mut fastrand::Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.u128(..).to_le_bytes()).into_uuid()
}

fn uuid(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).unwrap_or_default()
}

pub(crate) fn bytes(id: Uuid) -> prost::bytes::Bytes {
    id.as_bytes().to_vec().into()
}

pub(crate) fn up_to(rng: &mut fastrand::Rng, most: Duration) -> Duration {
    most.mul_f64(rng.f64())
}
