//! Clients who do not care for one run, but for what a workflow id stands for.

use onward::Code;
use onward_checker::log::{Call, Conflict, Reuse};
use onward_proto::v1;
use tokio::time::sleep;

use crate::{
    customer::{Customer, bytes, json, request_id, up_to},
    program::{Finish, Program},
};

impl Customer {
    /// Contends with others for workflow ids: starts, ends, signals and looks, in any order.
    pub async fn contend(&self, ids: &[String], times: u32, mut rng: fastrand::Rng) {
        self.arrive().await;
        for _ in 0..times {
            sleep(up_to(&mut rng, self.pace.next)).await;
            let id = &ids[rng.usize(0..ids.len())];
            // What came of it is in the book.
            let _ = match rng.u8(0..8) {
                0..4 => self.start_as(id, &mut rng).await,
                4 => self.terminate(id, None, &mut rng).await.map(drop),
                _ => {
                    self.describe(id).await;
                    Ok(())
                }
            };
        }
    }

    async fn start_as(&self, workflow_id: &str, rng: &mut fastrand::Rng) -> Result<(), String> {
        use v1::{IdConflictPolicy as AnyConflict, IdReusePolicy as AnyReuse};
        let (reuse, wire_reuse) = match rng.u8(0..6) {
            0 => (Reuse::Reject, AnyReuse::Reject),
            1 => (Reuse::AllowFailedOnly, AnyReuse::AllowFailedOnly),
            _ => (Reuse::Allow, AnyReuse::Allow),
        };
        let (conflict, wire_conflict) = match rng.u8(0..3) {
            0 => (Conflict::Fail, AnyConflict::Fail),
            1 => (Conflict::UseExisting, AnyConflict::UseExisting),
            _ => (Conflict::TerminateExisting, AnyConflict::TerminateExisting),
        };
        // Some end by themselves.
        let finish = if rng.bool() { Finish::Return } else { Finish::UntilTerminated };
        let policies = (wire_reuse, wire_conflict);
        let call = Call::Start { reuse, conflict };
        self.start_idle(workflow_id, finish, policies, call, rng).await
    }

    /// Starts a program without steps.
    async fn start_idle(
        &self,
        workflow_id: &str,
        finish: Finish,
        (reuse, conflict): (v1::IdReusePolicy, v1::IdConflictPolicy),
        call: Call,
        rng: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let program = Program { steps: Vec::new(), finish, unread: 0 };
        let request = v1::StartWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            workflow_type: "interpret".to_owned(),
            task_queue: self.queue.clone(),
            arguments: vec![json(&program)],
            id_reuse_policy: reuse.into(),
            id_conflict_policy: conflict.into(),
            request_id: bytes(request_id(rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        self.twice(rng, workflow_id, call, &request.request_id.clone(), || self.started(&request))
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Starts a run that goes on until somebody ends it, and looks at it: it is in the memory of the
    /// server that was asked. Tells whether that has answered.
    pub async fn settle_in(&self, workflow_id: &str, rng: &mut fastrand::Rng) -> bool {
        self.start_if_free(workflow_id, Finish::UntilTerminated, rng).await.is_ok()
            && self.describe(workflow_id).await.is_some()
    }

    /// Asks its server what it takes a workflow id to stand for, in one way or the other.
    pub async fn probe(&self, workflow_id: &str, rng: &mut fastrand::Rng) {
        if rng.bool() {
            self.describe(workflow_id).await;
        } else {
            // What came of it is in the book.
            let _ = self.start_if_free(workflow_id, Finish::Return, rng).await;
        }
    }

    /// Ends what a workflow id stands for. Tells whether that was answered.
    pub async fn end(&self, workflow_id: &str, rng: &mut fastrand::Rng) -> bool {
        self.terminate(workflow_id, None, rng).await.is_ok()
    }

    async fn start_if_free(
        &self,
        workflow_id: &str,
        finish: Finish,
        rng: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let policies = (v1::IdReusePolicy::Allow, v1::IdConflictPolicy::Fail);
        let call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };
        self.start_idle(workflow_id, finish, policies, call, rng).await
    }

    /// Sends what no server may take, beside the good requests of others.
    ///
    /// # Errors
    /// If one of them was not refused as it should be.
    pub async fn pester(&self, workflow_id: &str, mut rng: fastrand::Rng) -> Result<(), String> {
        self.arrive().await;
        let program = Program { steps: Vec::new(), finish: Finish::Return, unread: 0 };
        let mut request = v1::StartWorkflowRequest {
            workflow_id: workflow_id.to_owned(),
            workflow_type: "interpret".to_owned(),
            task_queue: self.queue.clone(),
            arguments: vec![json(&program)],
            request_id: bytes(request_id(&mut rng)),
            identity: self.name.clone(),
            ..Default::default()
        };
        let what = rng.u8(0..5);
        match what {
            0 => request.workflow_id.clear(),
            1 => request.workflow_id.push('\0'),
            2 => request.workflow_id = "x".repeat(1_001),
            3 => request.id_reuse_policy = 77,
            _ => request.run_timeout_us = -1,
        }
        let call = Call::Start { reuse: Reuse::Allow, conflict: Conflict::Fail };
        let answer = self
            .twice(&mut rng, workflow_id, call, &request.request_id.clone(), || {
                self.started(&request)
            })
            .await;
        match answer {
            Err(error) if error.code() == Code::InvalidArgument => Ok(()),
            other => Err(format!("bad request {what} was answered with {other:?}")),
        }
    }
}
