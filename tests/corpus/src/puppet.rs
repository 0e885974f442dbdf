//! A worker without an SDK: it says what it is told, for what a sound one does not do.

use std::{collections::VecDeque, time::Duration};

use onward_proto::{
    PROTOCOL,
    v1::{
        self, SessionRequest, SessionResponse, WorkerItem, server_item, worker_item,
        worker_service_client::WorkerServiceClient,
    },
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::stage::{QUEUE, Stage};

pub(crate) struct Puppet {
    items: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    waiting: VecDeque<server_item::Kind>,
}

impl Puppet {
    /// A worker of one workflow.
    pub(crate) async fn enter(stage: &Stage, identity: &str, workflow_type: &str) -> Self {
        let (items, receiver) = mpsc::channel(64);
        let mut service = WorkerServiceClient::new(stage.client(identity).channel());
        let hello = worker_item::Kind::Hello(v1::Hello {
            version: "none".to_owned(),
            protocol: PROTOCOL,
            namespace: stage.client.namespace().to_owned(),
            task_queue: QUEUE.to_owned(),
            identity: identity.to_owned(),
            build_id: "build-0".to_owned(),
            workflow_types: vec![workflow_type.to_owned()],
            activity_types: Vec::new(),
            cached_workflows: 10,
        });
        items.send(of_item(hello)).await.unwrap();
        let answers = service.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut puppet = Self { items, answers, waiting: VecDeque::new() };
        let server_item::Kind::Welcome(_) = puppet.next().await else { panic!("no welcome") };
        puppet.say(worker_item::Kind::Credits(v1::Credits { workflow: 1, activity: 0 })).await;
        puppet
    }

    async fn say(&self, item: worker_item::Kind) {
        self.items.send(of_item(item)).await.unwrap();
    }

    async fn next(&mut self) -> server_item::Kind {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return item;
            }
            let frame = self.answers.message().await.unwrap().expect("the session goes on");
            self.waiting.extend(frame.items.into_iter().filter_map(|item| item.kind));
        }
    }

    /// The next task.
    pub(crate) async fn task(&mut self) -> v1::WorkflowTask {
        loop {
            match timeout(Duration::from_secs(1), self.next()).await {
                Ok(server_item::Kind::WorkflowTask(task)) => return task,
                Ok(_) => {}
                Err(_) => self.beat().await,
            }
        }
    }

    /// A sign of life of the session, and of no task.
    async fn beat(&self) {
        self.say(worker_item::Kind::Heartbeats(v1::Heartbeats::default())).await;
    }

    /// Completes a task.
    pub(crate) async fn complete(
        &self,
        task: &v1::WorkflowTask,
        commands: Vec<v1::Command>,
        more: bool,
    ) {
        self.say(worker_item::Kind::TaskCompleted(v1::TaskCompleted {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            commands,
            more,
            sdk_flags: vec![1],
            ..Default::default()
        }))
        .await;
    }

    /// Fails a task.
    pub(crate) async fn fail(
        &self,
        task: &v1::WorkflowTask,
        cause: v1::WorkflowTaskFailureCause,
        message: &str,
    ) {
        self.say(worker_item::Kind::TaskFailed(v1::TaskFailed {
            task_id: task.task_id,
            run_id: task.run_id.clone(),
            cause: cause.into(),
            failure: Some(v1::Failure { message: message.to_owned(), ..Default::default() }),
        }))
        .await;
    }

    /// Does nothing for that long.
    pub(crate) async fn idle(&self, seconds: u64) {
        for _ in 0..seconds {
            sleep(Duration::from_secs(1)).await;
            self.beat().await;
        }
    }
}

fn of_item(item: worker_item::Kind) -> SessionRequest {
    SessionRequest { items: vec![WorkerItem { kind: Some(item) }] }
}
