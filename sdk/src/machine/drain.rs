//! Drains: facts go in one by one, and the code is polled until it is quiet.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use onward_proto::v1::{self, WorkflowTaskFailureCause as Cause, history_event::Attributes};

use super::{
    Close, Code, Machine, TaskFailure,
    leaf::LeafKind,
    marker::LocalStage,
    out_of_place, panicked,
    report::task_failure,
    section::{CancelRequest, Delivery},
};
use crate::{caught::caught, definition::RunError};

/// How often the code may be polled in one drain before it counts as a loop.
pub(super) const MAX_POLLS: u32 = 1_000_000;

impl Machine {
    /// The facts of one task: its messages together, then the others one by one.
    pub(super) fn take_facts(
        &mut self,
        facts: Vec<v1::HistoryEvent>,
        handed_out_at_us: i64,
    ) -> Result<(), TaskFailure> {
        {
            let mut state = self.core.state.borrow_mut();
            state.now_us = state.now_us.max(handed_out_at_us);
            // The task that issued these is committed: this one follows it.
            for leaf in state.leaves.values_mut() {
                if let LeafKind::Local { stage, .. } = &mut leaf.kind {
                    *stage = match std::mem::replace(stage, LocalStage::Running) {
                        LocalStage::Issued(call) => LocalStage::Startable(call),
                        stage @ (LocalStage::Startable(_) | LocalStage::Running) => stage,
                    };
                }
            }
        }
        let mut others = Vec::with_capacity(facts.len());
        let mut has_messages = false;
        let mut is_cancel_requested = false;
        for event in facts {
            match event.attributes {
                Some(Attributes::SignalReceived(signal)) => {
                    has_messages = true;
                    self.core.deliver_signal(event.event_id, signal);
                }
                Some(Attributes::WorkflowExecutionCancelRequested(_)) => {
                    has_messages = true;
                    is_cancel_requested = true;
                }
                Some(attributes) => others.push((event.event_id, attributes)),
                None => {}
            }
        }
        if is_cancel_requested && self.core.state.borrow().cancel == CancelRequest::None {
            self.deliver_cancel()?;
        }
        if !self.is_drained {
            self.is_drained = true;
            self.waker.wake_by_ref();
            self.drain()?;
        } else if has_messages {
            self.drain()?;
        }
        for (event_id, fact) in others {
            if !matches!(self.code, Code::Running(_)) {
                break;
            }
            let number = match &fact {
                Attributes::ActivityCompleted(event) => event.number,
                Attributes::ActivityFailed(event) => event.number,
                Attributes::ActivityTimedOut(event) => event.number,
                Attributes::ActivityCancelled(event) => event.number,
                Attributes::TimerFired(event) => event.number,
                Attributes::WorkflowExecutionStarted(_)
                | Attributes::WorkflowExecutionCompleted(_)
                | Attributes::WorkflowExecutionFailed(_)
                | Attributes::WorkflowExecutionCancelled(_)
                | Attributes::WorkflowExecutionTimedOut(_)
                | Attributes::WorkflowExecutionTerminated(_)
                | Attributes::WorkflowExecutionCancelRequested(_)
                | Attributes::WorkflowTaskCompleted(_)
                | Attributes::WorkflowTaskFailed(_)
                | Attributes::ActivityScheduled(_)
                | Attributes::ActivityCancelRequested(_)
                | Attributes::TimerStarted(_)
                | Attributes::TimerCancelled(_)
                | Attributes::SignalReceived(_)
                | Attributes::MarkerRecorded(_) => return Err(out_of_place(event_id, &fact)),
            };
            self.core.resolve(event_id, number, fact);
            self.drain()?;
        }
        Ok(())
    }

    /// Polls until quiet, then asks the conditions, then emits what the code dropped.
    pub(super) fn drain(&mut self) -> Result<(), TaskFailure> {
        let mut polls = 0;
        self.poll_until_quiet(&mut polls)?;
        let mut last = 0;
        loop {
            let next = {
                let state = self.core.state.borrow();
                let mut next = state.conditions.range(last + 1..);
                next.next().map(|(id, waker)| (*id, Rc::clone(waker)))
            };
            let Some((id, waker)) = next else { break };
            let met = self.core.state.borrow().conditions_met;
            waker.wake_by_ref();
            self.poll_until_quiet(&mut polls)?;
            // What has come true, this one or another, may make an older one true.
            last = if self.core.state.borrow().conditions_met == met { id } else { 0 };
        }
        self.core.flush_cancels();
        self.check()
    }

    fn poll_until_quiet(&mut self, polls: &mut u32) -> Result<(), TaskFailure> {
        while let Code::Running(code) = &mut self.code {
            if !self.core.wake.take() {
                break;
            }
            *polls += 1;
            if *polls > MAX_POLLS {
                let text = format!("the code was polled {MAX_POLLS} times without coming to rest");
                return Err(task_failure(Cause::Stuck, text));
            }
            let mut cx = Context::from_waker(&self.waker);
            match caught(|| code.as_mut().poll(&mut cx)) {
                Ok(Poll::Pending) => self.check()?,
                Ok(Poll::Ready(outcome)) => {
                    self.check()?;
                    self.end(outcome)?;
                }
                Err(panic) => return Err(panicked(&panic)),
            }
            if self.core.is_cancel_due() {
                self.deliver_cancel()?;
            }
        }
        Ok(())
    }

    pub(super) fn deliver_cancel(&mut self) -> Result<(), TaskFailure> {
        match self.core.deliver_cancel() {
            Delivery::Held => {}
            Delivery::Sections(wakers) => {
                for waker in wakers {
                    waker.wake_by_ref();
                }
            }
            Delivery::Run => {
                if let Code::Running(_) = self.code {
                    // Dropped while it is driven: its calls are cancelled.
                    self.discard_code()?;
                    self.code = Code::Ended(Box::new(Close::Cancelled(None)));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, outcome: Result<v1::Payload, RunError>) -> Result<(), TaskFailure> {
        self.discard_code()?;
        let is_cancel_requested = self.core.is_cancel_requested();
        let close = match outcome {
            Ok(result) => Close::Completed(result),
            Err(RunError::Failed { failure, cancelled: true }) if is_cancel_requested => {
                Close::Cancelled(Some(failure))
            }
            Err(RunError::Failed { failure, .. }) => Close::Failed(failure),
            Err(RunError::Payload(error)) => {
                return Err(task_failure(
                    Cause::Payload,
                    format!("the workflow's result: {error}"),
                ));
            }
        };
        self.code = Code::Ended(Box::new(close));
        Ok(())
    }
}
