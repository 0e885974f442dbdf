//! What can be typed after `onward`.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use onward_proto::v1::{IdConflictPolicy, IdReusePolicy, WorkflowStatus};
use serde::Deserialize;
use uuid::Uuid;

use crate::{input, text, version};

/// Durable execution for Rust: server, development server and workflow tool.
#[derive(Parser)]
#[command(name = "onward", version = version::TEXT, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  onward dev                                    start a server, its data in ~/.local/share/onward
  onward workflow start greet --input '\"Ada\"'   start a run of `greet`
  onward workflow list                          see what runs")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

// Help texts are no Markdown.
#[allow(clippy::doc_markdown)]
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a server for development, on SQLite, without any set-up.
    Dev(DevArgs),
    /// Start a server on a database of your own.
    Server(ServerArgs),
    /// Start, watch and stop workflows.
    Workflow(WorkflowArgs),
    /// Print version and commit.
    Version(VersionArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward dev
  onward dev --data-dir ./data --listen 127.0.0.1:0 --http-listen off")]
pub(crate) struct DevArgs {
    /// Keep runs in this directory [default: ~/.local/share/onward].
    #[arg(long, value_name = "DIR", env = "ONWARD_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward server --store postgres://onward:secret@db.internal/onward
  onward server --store sqlite:///var/lib/onward/onward.db --log-format json
  onward server --config /etc/onward.toml

Flags win over the environment, the environment wins over the file. Its keys are the flags' names with `_`:
  store = \"postgres://onward@db.internal/onward\"
  listen = \"10.0.0.5:7450\"
  insecure = true")]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

/// Where `onward server` keeps runs.
#[derive(Args)]
pub(crate) struct StoreArgs {
    /// Keep runs in this database, postgres://… or sqlite://….
    #[arg(long = "store", value_name = "URL", env = "ONWARD_STORE", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Start even if the database may lose what it has acknowledged.
    #[arg(long, env = "ONWARD_UNSAFE_ALLOW", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) unsafe_allow: bool,
    /// Expect a connection pooler in transaction mode before Postgres.
    #[arg(long, env = "ONWARD_PG_TRANSACTION_POOLING", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) pg_transaction_pooling: bool,
}

/// What both servers take.
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Serve gRPC here; port 0 picks a free one [default: 127.0.0.1:7450].
    #[arg(long, value_name = "ADDR", env = "ONWARD_LISTEN", hide_env_values = true, value_parser = listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Serve health and metrics here, or nowhere if `off` [default: 127.0.0.1:7451].
    #[arg(long, value_name = "ADDR|off", env = "ONWARD_HTTP_LISTEN", hide_env_values = true, value_parser = http_listen)]
    pub(crate) http_listen: Option<HttpListen>,
    /// Let other machines in: this server has neither TLS nor authentication.
    #[arg(long, env = "ONWARD_INSECURE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) insecure: bool,
    /// Write logs as text or as JSON lines [default: text].
    #[arg(long, value_name = "FORMAT", env = "ONWARD_LOG_FORMAT", hide_env = true)]
    pub(crate) log_format: Option<LogFormat>,
    /// Log what passes this filter, for example `warn` or `info,onward_server::shard=debug` [default: info].
    #[arg(long, value_name = "FILTER", env = "ONWARD_LOG", hide_env_values = true)]
    pub(crate) log: Option<String>,
    /// Read settings from this TOML file.
    #[arg(long, value_name = "FILE", env = "ONWARD_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

/// Where health and metrics are served, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpListen {
    Off,
    At(SocketAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward workflow start order --id order-42 --queue orders --input '{\"item\": 7}' --input 3
  onward workflow show order-42
  onward workflow result order-42 --json")]
pub(crate) struct WorkflowArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: WorkflowCommand,
}

/// Which server, and how it is shown.
#[derive(Args)]
pub(crate) struct Target {
    /// Talk to the server at this address.
    #[arg(
        long,
        global = true,
        help_heading = "Server",
        value_name = "URL",
        env = "ONWARD_ADDRESS",
        hide_env_values = true
    )]
    #[arg(default_value = "http://127.0.0.1:7450", value_parser = address)]
    pub(crate) address: String,
    /// Look in this namespace.
    #[arg(
        long,
        global = true,
        help_heading = "Server",
        value_name = "NAME",
        env = "ONWARD_NAMESPACE",
        hide_env_values = true
    )]
    #[arg(default_value = "default")]
    pub(crate) namespace: String,
    /// Print one JSON document instead of text.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
pub(crate) enum WorkflowCommand {
    /// Start a run and print its id.
    Start(StartArgs),
    /// Start a run, wait, and print its result.
    Execute(NewRunArgs),
    /// List runs, newest first.
    List(ListArgs),
    /// Show one run and what it waits for.
    Show(RunArgs),
    /// Print what has happened to a run.
    History(HistoryArgs),
    /// Wait for a run and print its result.
    Result(RunArgs),
    /// Send a signal to an open run.
    Signal(SignalArgs),
    /// Ask an open run to stop; its code decides how.
    Cancel(StopArgs),
    /// End an open run without asking its code.
    Terminate(StopArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward workflow start greet --input '\"Ada\"'
  onward workflow start order --id order-42 --queue orders --input-file order.json
  onward workflow start order --id order-42 --conflict use-existing --wait --input 42")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) run: NewRunArgs,
    /// Wait for the result, as `execute` does.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// What a run is started with.
#[derive(Args)]
pub(crate) struct NewRunArgs {
    /// The registered name of the workflow function.
    #[arg(value_name = "TYPE")]
    pub(crate) workflow_type: String,
    /// The workflow id [default: a new UUID].
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The task queue where its workers listen.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) queue: String,
    #[command(flatten)]
    pub(crate) input: InputArgs,
    /// Keep a note with the run; repeat for more.
    #[arg(long, value_name = "NAME=JSON", value_parser = input::named)]
    pub(crate) memo: Vec<(String, String)>,
    /// Whether the id may be used again once its last run has closed.
    #[arg(long, value_name = "POLICY", default_value = "allow")]
    pub(crate) reuse: Reuse,
    /// What happens when a run of this id is open.
    #[arg(long, value_name = "POLICY", default_value = "fail")]
    pub(crate) conflict: Conflict,
    /// End this run when it is open for longer, for example `30s` or `1h30m`.
    #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
    pub(crate) run_timeout: Option<Duration>,
    /// End the whole execution when it is open for longer.
    #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
    pub(crate) execution_timeout: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct InputArgs {
    /// An argument as JSON; repeat for more.
    #[arg(long, value_name = "JSON", value_parser = input::json, allow_hyphen_values = true)]
    pub(crate) input: Vec<String>,
    /// Read the arguments from a file that holds a JSON array, or from stdin if `-`.
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    pub(crate) input_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward workflow list --status running
  onward workflow list --limit 0 --json | jq -r '.workflows[].workflow_id'")]
pub(crate) struct ListArgs {
    /// Only runs of this status.
    #[arg(long)]
    pub(crate) status: Option<Status>,
    /// List at most so many; 0 lists all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
}

/// Names a run.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The workflow id.
    #[arg(value_name = "ID")]
    pub(crate) workflow_id: String,
    /// This run, in place of the newest one.
    #[arg(long, value_name = "UUID")]
    pub(crate) run_id: Option<Uuid>,
}

impl RunArgs {
    /// The run id for the wire; empty means the newest or the open run.
    pub(crate) fn run_id(&self) -> Bytes {
        self.run_id.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default()
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward workflow history order-42 --follow
  onward workflow history order-42 --json > order-42.json       as text, for scripts and replays
  onward workflow history order-42 --output order-42.history    as protobuf, for replays")]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Go on until the run closes.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Write the history to this file as protobuf.
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  onward workflow signal order-42 approval --input '{\"by\": \"Ada\"}'")]
pub(crate) struct SignalArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The signal's name.
    #[arg(value_name = "SIGNAL")]
    pub(crate) signal_name: String,
    #[command(flatten)]
    pub(crate) input: InputArgs,
}

#[derive(Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Why, for the people who read the history.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Reuse {
    Allow,
    AllowFailedOnly,
    Reject,
}

impl From<Reuse> for IdReusePolicy {
    fn from(reuse: Reuse) -> Self {
        match reuse {
            Reuse::Allow => Self::Allow,
            Reuse::AllowFailedOnly => Self::AllowFailedOnly,
            Reuse::Reject => Self::Reject,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Conflict {
    Fail,
    UseExisting,
    TerminateExisting,
}

impl From<Conflict> for IdConflictPolicy {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Fail => Self::Fail,
            Conflict::UseExisting => Self::UseExisting,
            Conflict::TerminateExisting => Self::TerminateExisting,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Status {
    Running,
    Completed,
    Failed,
    Cancelled,
    Terminated,
    TimedOut,
}

impl From<Status> for WorkflowStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Terminated => Self::Terminated,
            Status::TimedOut => Self::TimedOut,
        }
    }
}

/// An address to listen on, for example `127.0.0.1:7450` or `localhost:0`.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let mut found = text.to_socket_addrs().map_err(|_| "write it as 127.0.0.1:7450".to_owned())?;
    found.next().ok_or_else(|| "this name has no address".to_owned())
}

/// An address to listen on, or `off`.
pub(crate) fn http_listen(text: &str) -> Result<HttpListen, String> {
    if text == "off" { Ok(HttpListen::Off) } else { listen(text).map(HttpListen::At) }
}

/// The address of a server, for example `http://127.0.0.1:7450`; the scheme may be left out.
fn address(text: &str) -> Result<String, String> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest,
        Some(_) => return Err("it must begin with http://".to_owned()),
    };
    match rest.trim_end_matches('/') {
        "" => Err("write it as http://127.0.0.1:7450".to_owned()),
        rest => Ok(format!("http://{rest}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_says_what_it_does_in_one_sentence() {
        fn check(command: &clap::Command) {
            for about in command.get_about().into_iter().chain(
                command
                    .get_arguments()
                    .filter(|arg| arg.get_id() != "help" && arg.get_id() != "version")
                    .map(|arg| {
                        arg.get_help().unwrap_or_else(|| {
                            panic!("{} of {} has no help", arg.get_id(), command.get_name())
                        })
                    }),
            ) {
                let text = about.to_string();
                assert!(text.len() < 120 && !text.contains('\n'), "{text}");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn an_address_may_lack_its_scheme() {
        assert_eq!(address("10.0.0.5:7450/").unwrap(), "http://10.0.0.5:7450");
        assert_eq!(address("http://[::1]:7450").unwrap(), "http://[::1]:7450");
        assert_eq!(address("https://h:1").unwrap_err(), "it must begin with http://");
        for nobody in ["", "/", "http://", "http:///"] {
            assert_eq!(address(nobody).unwrap_err(), "write it as http://127.0.0.1:7450");
        }
    }

    #[test]
    fn a_listener_is_an_address_and_a_port() {
        assert_eq!(listen("127.0.0.1:0").unwrap().port(), 0);
        assert!(listen("localhost:7450").unwrap().ip().is_loopback());
        assert_eq!(listen("7450").unwrap_err(), "write it as 127.0.0.1:7450");
        assert_eq!(http_listen("off").unwrap(), HttpListen::Off);
    }
}
