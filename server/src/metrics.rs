//! The node's figures, for Prometheus.

use std::fmt;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// All metrics of one node. Names start with `onward_`.
pub struct Metrics {
    registry: Registry,
    batches: Counter,
    batch_rows: Histogram,
    parked: Counter,
    runs_in_memory: Gauge,
    runs_loaded: Counter,
    incidents: Gauge,
    sessions: Gauge,
    requests: Counter,
    refused: Counter,
    backlog_workflow: Gauge,
    backlog_activity: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Zeros.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("onward");
        let batches = Counter::default();
        registry.register("batches", "Batches that became durable", batches.clone());
        let batch_rows =
            Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0]);
        registry.register("batch_journal_rows", "Journal rows of a batch", batch_rows.clone());
        let parked = Counter::default();
        registry.register(
            "parked_runs",
            "Runs whose records cannot be read or stored",
            parked.clone(),
        );
        let runs_in_memory = Gauge::default();
        registry.register("runs_in_memory", "Runs in memory", runs_in_memory.clone());
        let runs_loaded = Counter::default();
        registry.register("runs_loaded", "Runs read back from the store", runs_loaded.clone());
        let incidents = Gauge::default();
        registry.register("runs_with_incident", "Runs to look at", incidents.clone());
        let sessions = Gauge::default();
        registry.register("worker_sessions", "Open worker sessions", sessions.clone());
        let requests = Counter::default();
        registry.register("client_requests", "Calls of the client service", requests.clone());
        let refused = Counter::default();
        registry.register("client_requests_refused", "Such calls refused", refused.clone());
        let backlog_workflow = Gauge::default();
        registry.register(
            "workflow_task_backlog",
            "Workflow tasks that wait for a worker",
            backlog_workflow.clone(),
        );
        let backlog_activity = Gauge::default();
        registry.register(
            "activity_task_backlog",
            "Activity tasks that wait for a worker",
            backlog_activity.clone(),
        );
        Self {
            registry,
            batches,
            batch_rows,
            parked,
            runs_in_memory,
            runs_loaded,
            incidents,
            sessions,
            requests,
            refused,
            backlog_workflow,
            backlog_activity,
        }
    }

    /// A batch is durable.
    pub fn batch(&self, rows: usize) {
        self.batches.inc();
        self.batch_rows.observe(rows as f64);
    }

    /// A run was parked.
    pub fn parked(&self) {
        self.parked.inc();
    }

    /// Runs came into memory, or left it.
    pub fn in_memory(&self, change: i64) {
        self.runs_in_memory.inc_by(change);
    }

    /// A run was read back from the store.
    pub fn loaded(&self) {
        self.runs_loaded.inc();
    }

    /// Runs came to have an incident, or have none any more.
    pub fn incidents(&self, change: i64) {
        self.incidents.inc_by(change);
    }

    /// A session was opened (1) or closed (-1).
    pub fn session(&self, change: i64) {
        self.sessions.inc_by(change);
    }

    /// A client's call was answered.
    pub fn request(&self, refused: bool) {
        self.requests.inc();
        if refused {
            self.refused.inc();
        }
    }

    /// How much waits for workers.
    pub fn backlog(&self, workflow: usize, activity: usize) {
        self.backlog_workflow.set(workflow as i64);
        self.backlog_activity.set(activity as i64);
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes all that is written");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
