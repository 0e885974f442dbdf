//! Messages from outside: signals and requests to stop.
//!
//! A message is accepted once for its request id, stands in the inbox in arrival order, and is
//! given to workflow code before the other facts of its task.

use onward_proto::{
    RequestId, Timestamp,
    v1::{
        HistoryEvent, SignalReceived, WorkflowExecutionCancelRequested, history_event::Attributes,
    },
};

use super::{
    Answer, Decision, Limits, Rejection, RequestKind, Run, Signal, Stop,
    limits::{check_id, check_payloads, limit, record},
    requests,
};

/// Checks a signal.
pub(super) fn check_signal(signal: &Signal, limits: &Limits) -> Result<(), Rejection> {
    check_id("signal_name_bytes", &signal.name, limits)
        .and_then(|()| check_id("identity_bytes", &signal.identity, limits))
        .and_then(|()| check_payloads(&signal.arguments, 0, limits))
        .map_err(Rejection::Limit)
}

/// Checks a request to stop or to be ended.
pub(super) fn check_stop(stop: &Stop, limits: &Limits) -> Result<(), Rejection> {
    check_id("identity_bytes", &stop.identity, limits)
        .and_then(|()| check_payloads([], stop.reason.len(), limits))
        .and_then(|()| super::limits::check_text(&stop.reason))
        .map_err(Rejection::Limit)
}

/// A signal on record.
pub(super) fn received(now: Timestamp, signal: &Signal) -> HistoryEvent {
    record(
        now,
        Attributes::SignalReceived(SignalReceived {
            signal_name: signal.name.clone(),
            arguments: signal.arguments.clone(),
            identity: signal.identity.clone(),
            request_id: signal.request_id.to_wire(),
            handed_over: false,
        }),
    )
}

impl Run {
    /// The answer to a request that reached this run. A signal that came with the start of the run
    /// bears the start's request id.
    pub(super) fn answer_to(&self, request_id: &[u8]) -> Answer {
        Answer { run_id: self.identity.run_id, started: self.started.is_by(request_id) }
    }

    /// Refuses what was accepted before, with its answer, and everything once the run is closed.
    pub(super) fn check_request(
        &self,
        now: Timestamp,
        kind: RequestKind,
        request_id: RequestId,
        limits: &Limits,
    ) -> Result<Answer, Rejection> {
        // Known requests before the closed check: a client that lost the reply to its last request
        // gets that answer again, not "already closed".
        if let Some(answer) = self.requests.lookup(now, kind, request_id, limits) {
            return Err(Rejection::Repeated(answer));
        }
        if self.is_closed() {
            return Err(Rejection::Closed {
                workflow_id: self.identity.workflow_id.clone(),
                status: self.status,
            });
        }
        Ok(self.answer_to(request_id.uuid().as_bytes()))
    }

    pub(super) fn decide_signal(
        &self,
        now: Timestamp,
        signal: &Signal,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let answer = self.check_request(now, RequestKind::Signal, signal.request_id, limits)?;
        check_signal(signal, limits)?;
        if self.signals >= limits.signals_per_run {
            let value = self.signals + 1;
            return Err(Rejection::Limit(limit("signals_per_run", limits.signals_per_run, value)));
        }
        self.decide_message(received(now, signal), answer, limits)
    }

    pub(super) fn decide_cancel_request(
        &self,
        now: Timestamp,
        stop: &Stop,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let answer = self.check_request(now, RequestKind::Cancel, stop.request_id, limits)?;
        check_stop(stop, limits)?;
        let message = record(
            now,
            Attributes::WorkflowExecutionCancelRequested(WorkflowExecutionCancelRequested {
                reason: stop.reason.clone(),
                identity: stop.identity.clone(),
                request_id: stop.request_id.to_wire(),
            }),
        );
        self.decide_message(message, answer, limits)
    }

    pub(super) fn decide_use_existing(
        &self,
        now: Timestamp,
        request_id: RequestId,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        let answer = self.check_request(now, RequestKind::Start, request_id, limits)?;
        // Each stays in the journal for as long as the run lives. Who only asks for the run must not
        // be able to fail it, so these count here alone.
        let bytes = self.bytes + self.request_bytes;
        if bytes > limits.history_bytes {
            return Err(Rejection::Limit(limit("history_bytes", limits.history_bytes, bytes)));
        }
        let request = requests::to_wire(now, RequestKind::Start, request_id, answer);
        Ok(Decision { requests: vec![request], answer: Some(answer), ..Decision::default() })
    }

    /// A message joins the inbox, unless the history is full.
    fn decide_message(
        &self,
        message: HistoryEvent,
        answer: Answer,
        limits: &Limits,
    ) -> Result<Decision, Rejection> {
        // Room is left for the task that ends the run in order.
        if let Some(limit) = self.history_limit(3, limits) {
            return Err(Rejection::Limit(limit));
        }
        let mut decision =
            Decision { records: vec![message], answer: Some(answer), ..Decision::default() };
        self.offer_task_for_facts(&mut decision);
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{fixture::*, *};

    #[test]
    fn a_request_that_comes_again_gets_its_first_answer_and_changes_nothing() {
        let answer = Answer { run_id: run_id(1), started: false };
        let repeated = Rejection::Repeated(answer);
        for input in [
            signal("a", request(9)),
            Input::RequestCancel(stop(request(9))),
            Input::Terminate(stop(request(9))),
            Input::UseExisting { request_id: request(9) },
        ] {
            let story = history().task([]).when(&input);
            assert_eq!(story.last.as_ref().unwrap().answer, Some(answer));
            let before = story.events().len() + story.run.inbox.len();
            let story = story.when(&input).then_rejected(&repeated).reload();
            let story = story.when(&input).then_rejected(&repeated);
            assert_eq!(story.events().len() + story.run.inbox.len(), before);
            // Also when the run has closed meanwhile.
            let story = story.terminated().when(&input).then_rejected(&repeated);
            let requests = story.run.requests();
            let status = story.run.status();
            let again = decide_for_closed(story.now, &input, "w", status, requests, &story.limits);
            assert_eq!(again, repeated);
            // Outside the window it is a new request.
            let day = Limits::default().request_window_us;
            let story = story.after(day + 1).when(&input);
            assert!(matches!(story.last, Err(Rejection::Closed { .. })));
        }
    }

    #[test]
    fn requests_that_no_event_tells_of_are_bounded_and_do_not_fail_their_run() {
        let uses = |story: Story, n| story.when(&Input::UseExisting { request_id: request(n) });
        let history_bytes = 2_000;
        let limits = Limits { history_bytes, ..Limits::default() };
        let mut story = history_of(&start_request(), limits).task([timer(1, 1)]);
        let mut accepted = 0;
        while story.last.is_ok() {
            accepted += 1;
            story = uses(story, 1_000 + accepted);
            assert!(accepted < 100, "they are never refused");
        }
        let Err(Rejection::Limit(limit)) = &story.last else { panic!("{:?}", story.last) };
        assert_eq!((&*limit.name, limit.limit), ("history_bytes", history_bytes));
        // Those that were accepted have their answers, and a load counts them again.
        let repeated = Rejection::Repeated(Answer { run_id: run_id(1), started: false });
        let story = uses(story.reload(), 1_001).then_rejected(&repeated);
        let story = uses(story, 999);
        assert!(matches!(story.last, Err(Rejection::Limit(_))));
        story.passes(1).task([]).signal("a").then_inbox("signal:a");
    }

    #[test]
    fn every_request_to_stop_is_recorded() {
        given(history().task([]).cancel_asked().cancel_asked())
            .then_inbox("cancel-asked cancel-asked")
            .task([cancel()])
            .then_history("started task(0) cancel-asked cancel-asked task(2) CANCELLED");
    }

    #[test]
    fn a_message_that_breaks_a_limit_is_refused_with_its_name() {
        let limits = Limits { payload_bytes: 1_100, ..Limits::default() };
        let text = |length| "x".repeat(length);
        let Input::Signal(signal) = signal("a", request(9)) else { panic!() };
        let stop = stop(request(9));
        let stops = [
            ("identity_bytes", Stop { identity: text(1_001), ..stop.clone() }),
            ("payload_bytes_per_command", Stop { reason: text(1_101), ..stop.clone() }),
            ("nul_characters_in_text", Stop { reason: "\0".into(), ..stop }),
        ];
        let signals = [
            ("signal_name_bytes", Signal { name: text(1_001), ..signal.clone() }),
            ("identity_bytes", Signal { identity: text(1_001), ..signal }),
        ];
        let cancels = stops.clone().map(|(name, stop)| (name, Input::RequestCancel(stop)));
        let terminates = stops.map(|(name, stop)| (name, Input::Terminate(stop)));
        let signals = signals.map(|(name, signal)| (name, Input::Signal(signal)));
        for (name, input) in cancels.into_iter().chain(terminates).chain(signals) {
            let story = history_of(&start_request(), limits.clone()).task([]).when(&input);
            let Err(Rejection::Limit(limit)) = story.last else { panic!("{input:?}") };
            assert_eq!(limit.name, name);
        }
    }

    #[test]
    fn a_run_takes_so_many_signals_and_no_larger_ones() {
        let limits = Limits { signals_per_run: 2, payload_bytes: 50, ..Limits::default() };
        let story = history_of(&start_request(), limits).task([]);
        let story = story.signal(&"x".repeat(60));
        assert!(
            matches!(&story.last, Err(Rejection::Limit(l)) if l.name.starts_with("payload_bytes"))
        );
        let story = story.signal("a").signal("b").task([]).signal("c");
        assert!(
            matches!(&story.last, Err(Rejection::Limit(l)) if (l.limit, l.value) == (2, 3)),
            "{:?}",
            story.last
        );
    }
}
