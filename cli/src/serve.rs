//! `onward dev` and `onward server`: start, say what is served, drain when asked to stop.

use std::{
    io::{self, IsTerminal},
    sync::Arc,
};

use onward_proto::HAS_SEEDED_BUGS;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::info;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use crate::{
    args::{LogFormat, ServeArgs},
    error::{Error, Result},
    output::{Out, wants_colours},
    server::{self, Bound},
    settings::{File, Settings, Store, without_secrets},
    version,
};

/// What the shell is told after a second Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Runs a server until it is told to stop.
pub(crate) fn run(args: &ServeArgs, store: impl FnOnce(&File) -> Result<Store>) -> Result<()> {
    if HAS_SEEDED_BUGS {
        return Err(Error::failed("this build has bugs that tests can turn on; it serves nobody"));
    }
    let file = File::read(args.config.as_deref())?;
    let settings = Settings::merge(args, &file)?;
    start_log(&settings)?;
    let store = store(&file)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(settings, store))
}

async fn serve(settings: Settings, store: Store) -> Result<()> {
    let stop = stop_signal()?;
    let shown = without_secrets(&store.url);
    info!(
        version = version::TEXT,
        store = shown,
        listen = %settings.listen,
        http_listen = settings.http_listen.map(tracing::field::display),
        log = settings.log,
        "starting"
    );
    let server = server::bind(&settings, store).await?;
    match announce(&server, &shown) {
        // A server does not stop because nobody reads what it prints.
        Ok(()) | Err(Error::ClosedPipe) => {}
        Err(error) => return Err(error),
    }
    server.serve(stop).await?;
    info!("stopped");
    Ok(())
}

/// Says what is served, and what to do next.
fn announce(server: &Bound, store: &str) -> Result<()> {
    let grpc = server.grpc_addr();
    let mut out = Out::new();
    out.line(format_args!("onward {}", version::TEXT))?;
    out.line(format_args!("  grpc     http://{grpc}"))?;
    if let Some(http) = server.http_addr() {
        out.line(format_args!("  health   http://{http}/health/ready"))?;
        out.line(format_args!("  metrics  http://{http}/metrics"))?;
    }
    out.line(format_args!("  store    {store} ({})", server.store_kind()))?;
    let next = match grpc.port() {
        onward_proto::DEFAULT_PORT if grpc.ip().is_loopback() => String::new(),
        _ => format!(" --address http://{grpc}"),
    };
    out.line(format_args!("\nNext: onward workflow list{next}"))?;
    out.flush()
}

/// Resolves at the first Ctrl-C or SIGTERM. The second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Arc::new(Notify::new());
    let asked = Arc::clone(&stop);
    // In a task of its own: the second signal counts while the server is still starting, too.
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        info!("draining for at most 10 s; a second Ctrl-C ends it at once");
        asked.notify_one();
        either(&mut interrupt, &mut terminate).await;
        std::process::exit(INTERRUPTED);
    });
    Ok(async move { stop.notified().await })
}

/// Both branches only wait, so dropping the other one loses nothing.
async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Sends logs to stderr.
fn start_log(settings: &Settings) -> Result<()> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|error| Error::Usage(format!("ONWARD_LOG {:?}: {error}", settings.log)))?;
    let stderr = io::stderr();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(stderr.is_terminal() && wants_colours(&stderr))
        // Complaining about a closed stderr on stderr would panic.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
