//! `onward workflow …`: one file per kind of question.

mod history;
mod list;
mod outcome;
mod send;
mod show;
mod start;
mod summary;

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    args::{Target, WorkflowArgs, WorkflowCommand},
    connection::Connection,
    error::Result,
    output::Out,
};

/// What every command has at hand.
struct Session {
    connection: Connection,
    target: Target,
    out: Out,
}

/// Runs one command against the server.
pub(crate) async fn run(args: WorkflowArgs) -> Result<()> {
    let connection = Connection::open(&args.target).await?;
    let mut session = Session { connection, target: args.target, out: Out::new() };
    let done = match args.command {
        WorkflowCommand::Start(args) if args.wait => start::execute(&mut session, args.run).await,
        WorkflowCommand::Start(args) => start::start(&mut session, args.run).await,
        WorkflowCommand::Execute(args) => start::execute(&mut session, args).await,
        WorkflowCommand::List(args) => list::run(&mut session, args).await,
        WorkflowCommand::Show(run) => show::run(&mut session, run).await,
        WorkflowCommand::History(args) => history::run(&mut session, args).await,
        WorkflowCommand::Result(run) => outcome::run(&mut session, run).await,
        WorkflowCommand::Signal(args) => send::signal(&mut session, args).await,
        WorkflowCommand::Cancel(args) => send::cancel(&mut session, args).await,
        WorkflowCommand::Terminate(args) => send::terminate(&mut session, args).await,
    };
    // What was printed before an error is part of the answer.
    session.out.flush()?;
    done
}

/// A new request id; a repeated call keeps it.
fn request_id() -> Bytes {
    Bytes::copy_from_slice(Uuid::new_v4().as_bytes())
}

/// Who asks, for the people who read the history.
fn identity() -> String {
    let host = rustix::system::uname();
    format!("cli@{}:{}", host.nodename().to_string_lossy(), std::process::id())
}
