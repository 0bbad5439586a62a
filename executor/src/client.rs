//! The executor's end of the control stream.

use std::time::{Duration, Instant};

use tfos_core::proto::control_client::ControlClient;
use tfos_core::proto::{FromDriver, FromExecutor, MAX_MESSAGE_BYTES, from_driver};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint, Error as TransportError};
use tonic::{Request, Status, Streaming};

use crate::Error;
use crate::run::ExecutorOptions;

/// What the driver says, in order.
pub(crate) struct Orders(Streaming<FromDriver>);

impl Orders {
    /// The next order; `None` when the driver has ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<from_driver::Message>, Error> {
        loop {
            match self.0.message().await.map_err(|status| refused(&status))? {
                Some(FromDriver { message: Some(message) }) => return Ok(Some(message)),
                Some(FromDriver { message: None }) => {}
                None => return Ok(None),
            }
        }
    }
}

fn refused(status: &Status) -> Error {
    Error::Refused { reason: status.message().to_owned() }
}

/// Opens the stream; the first message of `outgoing` is the registration.
pub(crate) async fn open(
    options: &ExecutorOptions,
    outgoing: UnboundedReceiver<FromExecutor>,
) -> Result<Orders, Error> {
    let mut client = ControlClient::new(connect(options).await?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
    let bearer = format!("Bearer {}", options.token).parse();
    let bearer = bearer.map_err(|_| Error::Refused { reason: "the token has characters that no token has".into() })?;
    request.metadata_mut().insert("authorization", bearer);
    let opened = client.session(request).await.map_err(|status| refused(&status))?;
    Ok(Orders(opened.into_inner()))
}

/// Tries until the driver answers: an init system may start executors first.
async fn connect(options: &ExecutorOptions) -> Result<Channel, Error> {
    let fail = |source: TransportError| Error::Driver { url: options.driver.clone(), source: source.into() };
    let endpoint = Endpoint::from_shared(options.driver.clone()).map_err(fail)?;
    let endpoint = endpoint
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20));
    let deadline = Instant::now() + options.connect_timeout;
    let mut pause = Duration::from_millis(20);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(e) if Instant::now() + pause >= deadline => return Err(fail(e)),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
