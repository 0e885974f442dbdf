//! Describing a run: what its lane knows, what only the store has, and a message that fits.

use onward_proto::{
    RunId,
    v1::{self, DescribeWorkflowResponse, history_event::Attributes},
};
use prost::Message;
use tonic::Status;

use super::{client::ClientApi, history::read_journal};
use crate::shard::message::{self, Target};

/// Bytes of a description at most. Arguments and result take up to 2 MiB each.
const MOST_BYTES: usize = (4 << 20) + (512 << 10);

impl ClientApi {
    pub(super) async fn describe(
        &self,
        target: Target,
    ) -> Result<DescribeWorkflowResponse, Status> {
        let mut description = *self
            .ask(&target, |target, answer| message::Request::Describe { target, answer })
            .await?;
        // What no lane keeps in memory: the memo, and what the run was started with.
        let run_id = description.info.as_ref().map(|info| info.run_id.clone());
        if let Some(run_id) = run_id.and_then(|id| RunId::from_wire(&id).ok()) {
            self.add_start(run_id, &target, &mut description).await?;
        }
        fit(&mut description, MOST_BYTES);
        Ok(description)
    }

    /// Adds what only the journal's first row and the run's row know.
    pub(super) async fn add_start(
        &self,
        run_id: RunId,
        target: &Target,
        description: &mut DescribeWorkflowResponse,
    ) -> Result<(), Status> {
        let page = read_journal(&self.node, run_id, 0, 1).await?;
        let Some((_, row)) = page.rows.first() else { return Ok(()) };
        let row = v1::JournalRow::decode(row.as_ref())
            .map_err(|error| Status::data_loss(format!("run {run_id} cannot be read: {error}")))?;
        let started = row.records.into_iter().find_map(|record| match record.attributes {
            Some(Attributes::WorkflowExecutionStarted(started)) => Some(started),
            _ => None,
        });
        if let Some(started) = started {
            description.arguments = started.arguments;
            description.execution_timeout_us = started.execution_timeout_us;
            description.run_timeout_us = started.run_timeout_us;
            if let Some(info) = description.info.as_mut() {
                info.memo = started.memo;
                info.namespace.clone_from(&target.namespace);
            }
        }
        Ok(())
    }
}

/// Leaves out the last untaken facts, then the last activities, until the message has room.
fn fit(description: &mut DescribeWorkflowResponse, most: usize) {
    let over = description.encoded_len().saturating_sub(most);
    let (freed, count) = cut(&mut description.inbox, over);
    description.inbox_left_out = count;
    let (_, count) = cut(&mut description.pending_activities, over.saturating_sub(freed));
    description.activities_left_out = count;
}

/// Takes items from the end until `over` bytes are free; tells how many bytes and items that were.
fn cut<T: Message>(items: &mut Vec<T>, over: usize) -> (usize, u32) {
    let (mut freed, mut count) = (0, 0);
    // The counts themselves take a few bytes.
    while over > 0
        && freed < over + 16
        && let Some(item) = items.pop()
    {
        freed += item.encoded_len();
        count += 1;
    }
    (freed, count)
}

#[cfg(test)]
mod tests {
    use onward_proto::v1::{HistoryEvent, Payload, PendingActivityInfo, SignalReceived};

    use super::*;

    fn payload(bytes: usize) -> Payload {
        Payload { data: vec![7; bytes].into(), ..Payload::default() }
    }

    fn described(signals: usize, activities: usize) -> DescribeWorkflowResponse {
        let signal =
            SignalReceived { arguments: vec![payload(1_000)], ..SignalReceived::default() };
        let fact = HistoryEvent {
            attributes: Some(Attributes::SignalReceived(signal)),
            ..HistoryEvent::default()
        };
        let activity = PendingActivityInfo {
            heartbeat_details: Some(payload(1_000)),
            ..PendingActivityInfo::default()
        };
        DescribeWorkflowResponse {
            inbox: vec![fact; signals],
            pending_activities: vec![activity; activities],
            ..DescribeWorkflowResponse::default()
        }
    }

    #[test]
    fn a_description_that_fits_is_left_alone() {
        let mut description = described(10, 10);
        fit(&mut description, 30_000);
        assert_eq!(description, described(10, 10));
    }

    #[test]
    fn a_description_leaves_out_the_last_facts_and_then_the_last_activities_and_says_so() {
        let mut description = described(20, 20);
        fit(&mut description, 30_000);
        assert!(description.encoded_len() <= 30_000);
        assert_eq!(
            (description.pending_activities.len(), description.activities_left_out),
            (20, 0)
        );
        assert_eq!(description.inbox.len() + description.inbox_left_out as usize, 20);
        assert!(!description.inbox.is_empty());

        let mut description = described(20, 50);
        fit(&mut description, 30_000);
        assert!(description.encoded_len() <= 30_000);
        assert_eq!(description.inbox_left_out, 20);
        let left = description.pending_activities.len();
        assert_eq!(left + description.activities_left_out as usize, 50);
        assert!(left > 20);
    }
}
