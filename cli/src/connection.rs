//! The way to the server: one handshake, then calls that are asked again under the same request id until
//! their answer is known.

use std::{
    error::Error as StdError,
    io,
    time::{Duration, Instant},
};

use onward_proto::{
    PROTOCOL,
    v1::{GetServerInfoRequest, client_service_client::ClientServiceClient},
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    args::Target,
    error::{Error, Result},
    text,
};

/// How long a call is repeated while its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longer than the server lets a call wait, which is 60 s.
const NO_ANSWER: Duration = Duration::from_secs(90);
/// A described run with a full inbox is larger than a usual message.
const LARGEST_ANSWER: usize = 256 << 20;

/// The generated client.
pub(crate) type Client = ClientServiceClient<Channel>;

/// A server that speaks our protocol.
pub(crate) struct Connection {
    client: Client,
    address: String,
}

impl Connection {
    /// Connects, and makes sure that both sides speak the same protocol.
    pub(crate) async fn open(target: &Target) -> Result<Self> {
        let address = target.address.clone();
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| Error::Usage(format!("{address} is not an address: {error}")))?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10));
        let channel =
            endpoint.connect().await.map_err(|error| cannot_reach(&address, &deepest(&error)))?;
        let client = Client::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        let connection = Self { client, address };
        connection.shake_hands().await?;
        Ok(connection)
    }

    async fn shake_hands(&self) -> Result<()> {
        let own = env!("CARGO_PKG_VERSION");
        let request = GetServerInfoRequest { version: own.to_owned(), protocol: PROTOCOL };
        let answer = self.client.clone().get_server_info(request).await;
        let server = answer.map_err(|status| self.error(&status))?.into_inner();
        if server.protocol == PROTOCOL {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "this is onward {own} with protocol {PROTOCOL}, the server at {} is {} with protocol {}: use the \
             same version on both sides",
            self.address,
            text::clean(&server.version),
            server.protocol
        )))
    }

    /// Makes a call. While nobody knows whether it was applied it is asked again, which is safe: a mutating
    /// request carries its id, a reading one changes nothing.
    pub(crate) async fn call<Req: Clone, Res>(
        &self,
        request: Req,
        method: impl AsyncFn(&mut Client, Req) -> Result<Response<Res>, Status>,
    ) -> Result<Res> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let mut client = self.client.clone();
            let answer =
                tokio::time::timeout(NO_ANSWER, method(&mut client, request.clone())).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer within 90 s"),
            };
            if !is_unknown(status.code()) || started.elapsed() + pause > PATIENCE {
                return Err(self.error(&status));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One clear line.
    fn error(&self, status: &Status) -> Error {
        if let Some(source) = status.source()
            && let Some(error) = io_error(source)
        {
            return cannot_reach(&self.address, &io_text(error));
        }
        let message = text::clean(status.message());
        match status.code() {
            code if is_unknown(code) => Error::Failed(format!(
                "{} gave no proper answer: {}",
                self.address,
                if message.is_empty() { code.description().to_owned() } else { message }
            )),
            Code::Unimplemented => Error::Failed(format!(
                "{} does not serve this call: is it an Onward server of this version?",
                self.address
            )),
            code if message.is_empty() => Error::failed(code.description()),
            _ => Error::Failed(message),
        }
    }
}

/// Whether the call may or may not have been applied.
fn is_unknown(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Cancelled
        | Code::Unknown => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

fn cannot_reach(address: &str, why: &str) -> Error {
    Error::Failed(format!(
        "cannot reach {address}: {why}; start one with 'onward dev' or set ONWARD_ADDRESS"
    ))
}

/// The cause at the bottom of the chain, which is the one that tells.
fn deepest(error: &(dyn StdError + 'static)) -> String {
    if let Some(error) = io_error(error) {
        return io_text(error);
    }
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    text::clean(&deepest.to_string())
}

fn io_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

fn io_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => text::clean(&error.to_string()),
    }
}
