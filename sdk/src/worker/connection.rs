//! The calls that a worker makes.

use std::sync::Arc;

use onward_proto::{RunId, v1, v1::worker_service_client::WorkerServiceClient};
use tonic::{
    Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};

use super::{
    outbox::{Frames, SessionCodec},
    runs::TaskKey,
};
use crate::client::rpc::{Backoff, may_have_happened};

/// Frames of a session may be that large, and a little more: the server says its own limit.
const MAX_FRAME: usize = 16 << 20;

/// A page of history that fails is asked for again so many times.
const PAGE_TRIES: u32 = 30;

/// A worker's own way to the server, apart from the client's: a full session must not hold up calls.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    channel: Channel,
    address: Arc<str>,
    namespace: Arc<str>,
}

impl Connection {
    pub(crate) fn new(channel: Channel, address: Arc<str>, namespace: Arc<str>) -> Self {
        Self { channel, address, namespace }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Opens a session's stream.
    pub(crate) async fn open(
        &self,
        frames: Frames,
    ) -> Result<Streaming<v1::SessionResponse>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static("/onward.v1.WorkerService/Session");
        let response = grpc.streaming(Request::new(frames), path, SessionCodec).await?;
        Ok(response.into_inner())
    }

    /// Reads a task's history from `position` to its end.
    pub(crate) async fn read_history(
        &self,
        run: RunId,
        task: TaskKey,
        mut position: bytes::Bytes,
        mut backoff: Backoff,
    ) -> Result<Vec<v1::HistoryEvent>, Status> {
        let mut client =
            WorkerServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME);
        let mut events = Vec::new();
        let mut tries = 0;
        while !position.is_empty() {
            let request = v1::TaskHistoryRequest {
                task_id: Some(task.into()),
                run_id: run.to_wire(),
                position: position.clone(),
                namespace: self.namespace.to_string(),
            };
            match client.task_history(request).await {
                Ok(page) => {
                    let page = page.into_inner();
                    events.extend(page.events);
                    position = page.next_position;
                    tries = 0;
                    backoff.reset();
                }
                Err(status) if may_have_happened(status.code()) && tries < PAGE_TRIES => {
                    tries += 1;
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(status) => return Err(status),
            }
        }
        Ok(events)
    }
}
