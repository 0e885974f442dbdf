//! The plain port: probes and metrics.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::shard::Node;

/// `/health/live`, `/health/ready`, `/metrics`.
pub(crate) fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(node)
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    if node.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not every shard is served yet\n")
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> String {
    let (workflow, activity) = node.dispatch.backlog();
    node.metrics.backlog(workflow, activity);
    node.metrics.render()
}
