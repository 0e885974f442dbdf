//! A worker to be killed: it runs programs until then, and takes notes in a file.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use clap::Parser;
use onward::{Client, Worker, shutdown_signal};
use onward_chaos::{NotesFile, QUEUE};
use onward_programs::{
    Tools, interpret,
    notes::{self, Notebook},
    work,
};
use onward_system_tests::log_to_stderr;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    address: String,
    #[arg(long)]
    notes: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long)]
    cached_workflows: usize,
}

/// Where workflow code takes notes.
static NOTEBOOK: OnceLock<Arc<dyn Notebook>> = OnceLock::new();

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    log_to_stderr();
    let args = Args::parse();
    let notebook: Arc<dyn Notebook> = Arc::new(NotesFile::open(&args.notes)?);
    NOTEBOOK.get_or_init(|| Arc::clone(&notebook));
    notes::open_with(|| NOTEBOOK.get().cloned());
    let worker = format!("{}@{}", args.name, std::process::id());
    Worker::builder(Client::connect(args.address).await?, QUEUE)
        .deps(Tools { notebook, worker })
        .identity(args.name)
        .cached_workflows(args.cached_workflows)
        .workflows::<(interpret,)>()
        .activities::<(work,)>()
        .run_until(shutdown_signal())
        .await?;
    Ok(())
}
