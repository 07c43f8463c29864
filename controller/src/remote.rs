//! The way from this process to a controller in another: commands that this process may
//! not decide are sent to the process that the image names.
//!
//! One connection is kept to the current controller; many commands can be under way on
//! it. What always holds: a command is answered exactly once; a success only when this
//! process's own image shows it; one that may have arrived is sent again only if that is
//! right ([`Command::is_repeatable`]). A controller that the image no longer names is not
//! waited for, since nothing it commits from then on can be applied.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex as AsyncMutex, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};
use yuxi_protocol::{
    codec::{ApiVersion, StrBytes},
    frame,
    ids::{BrokerId, ControllerEpoch},
    message,
    messages::{self, EnvelopeRequest, OutboundFrameLimits, RequestResponsePair},
};

use crate::{
    ControllerError,
    command::{Asked, Command, Sender},
    image::ClusterImage,
    keys::Address,
    rpc,
    service::Request,
    store::Revision,
    sync::lock,
};

/// How long after a failed try the next one begins, unless the image changes before.
const RETRY_DELAY: Duration = Duration::from_millis(50);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Requests on the connection that are not yet written.
const FRAME_QUEUE: usize = 64;

/// The largest answer that is read.
const MAX_FRAME_BYTES: usize = 64 << 20;

/// The read buffer grows by this much, whatever length a frame declares.
const READ_BYTES: usize = 64 << 10;

/// The correlation id stands behind length, API key and version.
const CORRELATION_AT: usize = 8;

/// Sends commands to whoever is the controller.
pub(crate) struct Remote {
    shared: Arc<Shared>,
    under_way: JoinSet<()>,
}

struct Shared {
    node_id: BrokerId,
    /// This process as a candidate.
    incarnation: String,
    images: watch::Receiver<Arc<ClusterImage>>,
    /// The way back, for commands that turn out to be this process's to decide.
    requests: mpsc::WeakSender<Request>,
    connection: AsyncMutex<Option<(ControllerEpoch, Connection)>>,
}

/// How one try to have a command decided elsewhere ended.
enum Tried {
    Answered(Result<Revision, ControllerError>),
    /// It was not sent, or it was refused by something that is not the controller.
    NotDone,
    /// It was sent, and no answer came.
    InDoubt,
}

/// Where the image says that a command belongs.
enum Destination {
    Here,
    There(ControllerEpoch, Address, Sender),
    Nowhere,
}

impl Remote {
    pub(crate) fn new(
        node_id: BrokerId,
        incarnation: String,
        images: watch::Receiver<Arc<ClusterImage>>,
        requests: mpsc::WeakSender<Request>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                node_id,
                incarnation,
                images,
                requests,
                connection: AsyncMutex::new(None),
            }),
            under_way: JoinSet::new(),
        }
    }

    /// Sees to it that a command is decided and answered. How many are under way is
    /// bounded by the handles that wait for them. `registered` is the incarnation under
    /// which this process's broker is registered.
    pub(crate) fn forward(&mut self, asked: Asked, registered: Option<String>) {
        while self.under_way.try_join_next().is_some() {}
        let shared = Arc::clone(&self.shared);
        self.under_way.spawn(async move {
            shared.see_to(asked, registered.as_deref()).await;
        });
    }
}

impl Shared {
    async fn see_to(&self, mut asked: Asked, registered: Option<&str>) {
        let give_up_at = asked.give_up_at;
        let carried = self.carry(&mut asked, registered);
        match timeout_at(give_up_at, carried).await {
            Ok(Some(outcome)) => asked.finish(outcome),
            // This process is the controller, and has lost its session: it may be for long.
            Ok(None) if asked.is_late() => {
                asked.finish(Err(ControllerError::TimedOut));
            }
            Ok(None) => {
                // The image may say so a moment before the service knows.
                sleep(RETRY_DELAY).await;
                if let Some(requests) = self.requests.upgrade() {
                    // The loop has ended, and the caller sees that.
                    let _ = requests.send(Request::Command(asked)).await;
                }
            }
            Err(_) => asked.finish(Err(ControllerError::TimedOut)),
        }
    }

    /// Tries until it is answered; `None` when it is this process that has to decide.
    async fn carry(
        &self,
        asked: &mut Asked,
        registered: Option<&str>,
    ) -> Option<Result<Revision, ControllerError>> {
        let mut images = self.images.clone();
        loop {
            let image = Arc::clone(&images.borrow_and_update());
            let tried = match self.destination(&image, registered) {
                Destination::Here => return None,
                Destination::Nowhere => Tried::NotDone,
                Destination::There(epoch, address, sender) => {
                    let connection = tokio::select! {
                        connection = self.connection(epoch, &address) => connection,
                        () = deposed(self.images.clone(), epoch) => None,
                    };
                    match connection {
                        None => Tried::NotDone,
                        Some(connection) => tokio::select! {
                            tried = self.try_once(&connection, &sender, asked) => tried,
                            () = deposed(self.images.clone(), epoch) => Tried::InDoubt,
                        },
                    }
                }
            };
            match tried {
                Tried::Answered(outcome) => return Some(outcome),
                Tried::InDoubt if !asked.command.is_repeatable() => {
                    return Some(Err(ControllerError::TimedOut));
                }
                Tried::InDoubt | Tried::NotDone => {}
            }
            tokio::select! {
                changed = images.changed() => {
                    if changed.is_err() {
                        return Some(Err(ControllerError::Stopped));
                    }
                }
                () = sleep(RETRY_DELAY) => {}
            }
        }
    }

    fn destination(&self, image: &ClusterImage, registered: Option<&str>) -> Destination {
        let Some(controller) = image.controller() else {
            return Destination::Nowhere;
        };
        if controller.incarnation == self.incarnation {
            return Destination::Here;
        }
        let sender = image
            .broker(self.node_id)
            .filter(|broker| registered == Some(&broker.registration.incarnation))
            .map(|broker| Sender {
                broker: broker.id,
                broker_epoch: broker.epoch,
                incarnation: broker.registration.incarnation.clone(),
            });
        match (&controller.endpoint, sender) {
            (Some(address), Some(sender)) => {
                Destination::There(controller.epoch, address.clone(), sender)
            }
            _ => Destination::Nowhere,
        }
    }

    async fn try_once(&self, connection: &Connection, sender: &Sender, asked: &mut Asked) -> Tried {
        match &mut asked.command {
            Command::AlterPartitions(call) => {
                let request = rpc::alter_partition(sender, &call.input);
                let version = rpc::ALTER_PARTITION_VERSION;
                let answer = connection.call(version, &request).await;
                let response = match answer {
                    Ok(response) => response,
                    Err(tried) => return tried,
                };
                if let Err(error) = rpc::no_error(response.error_code) {
                    return refused(error, false);
                }
                let revision = rpc::visible_from(&response.unknown_tagged_fields);
                let image = self.image_at(revision).await;
                call.set_answer(rpc::isr_answers(&call.input, &response, &image));
                Tried::Answered(Ok(revision))
            }
            Command::AllocateProducerIds(call) => {
                let request = rpc::allocate_producer_ids(sender);
                let response = match connection.call(0, &request).await {
                    Ok(response) => response,
                    Err(tried) => return tried,
                };
                let revision = rpc::visible_from(&response.unknown_tagged_fields);
                match rpc::producer_id_block(&response) {
                    Ok(block) => {
                        call.set_answer(Ok(block));
                        Tried::Answered(Ok(revision))
                    }
                    Err(error) => refused(error, true),
                }
            }
            _ => self.try_envelope(connection, sender, asked).await,
        }
    }

    async fn try_envelope(
        &self,
        connection: &Connection,
        sender: &Sender,
        asked: &mut Asked,
    ) -> Tried {
        let timeout = asked.give_up_at.saturating_duration_since(Instant::now());
        let command = &mut asked.command;
        let request_data = match command.to_json(sender, timeout) {
            Ok(json) => Bytes::from(json),
            Err(error) => {
                let error = ControllerError::InvalidRequest(error.to_string());
                return Tried::Answered(Err(error));
            }
        };
        let request = message!(EnvelopeRequest { request_data });
        let response = match connection.call(0, &request).await {
            Ok(response) => response,
            Err(tried) => return tried,
        };
        let Some(json) = response.response_data else {
            let error = rpc::no_error(response.error_code).err();
            return refused(error.unwrap_or(ControllerError::NotController), true);
        };
        match command.answered(&json) {
            Ok(Ok(revision)) => {
                self.image_at(revision).await;
                Tried::Answered(Ok(revision))
            }
            Ok(Err(error)) => refused(error, true),
            Err(error) => {
                tracing::warn!(%error, command = command.name(), "a strange answer from the controller");
                Tried::InDoubt
            }
        }
    }

    /// Waits until this process sees what the controller has done.
    async fn image_at(&self, revision: Revision) -> Arc<ClusterImage> {
        let mut images = self.images.clone();
        let waited = images
            .wait_for(|image| image.revision() >= revision)
            .await
            .map(|image| Arc::clone(&image));
        // The service has ended, and the caller is told so when its command is dropped.
        waited.unwrap_or_else(|_| Arc::clone(&self.images.borrow()))
    }

    async fn connection(&self, epoch: ControllerEpoch, address: &Address) -> Option<Connection> {
        let mut kept = self.connection.lock().await;
        if let Some((to, connection)) = kept.as_ref()
            && *to == epoch
            && connection.is_open()
        {
            return Some(connection.clone());
        }
        match Connection::open(address).await {
            Ok(connection) => {
                *kept = Some((epoch, connection.clone()));
                Some(connection)
            }
            Err(error) => {
                let Address { host, port } = address;
                tracing::debug!(%error, host, port, "the controller can't be reached");
                None
            }
        }
    }
}

/// Whether a refusal is the answer, or says that this was not the time or place to ask.
fn refused(error: ControllerError, epoch_is_ours: bool) -> Tried {
    match error {
        ControllerError::NotController | ControllerError::Stopped => Tried::NotDone,
        // This process is about to learn its new epoch.
        ControllerError::StaleBrokerEpoch | ControllerError::ClusterAuthorizationFailed
            if epoch_is_ours =>
        {
            Tried::NotDone
        }
        error => Tried::Answered(Err(error)),
    }
}

/// Resolves when the image names another controller than that of `epoch`.
async fn deposed(mut images: watch::Receiver<Arc<ClusterImage>>, epoch: ControllerEpoch) {
    let reigns = |image: &ClusterImage| image.controller().is_some_and(|now| now.epoch == epoch);
    // An error means that the service has ended.
    let _ = images.wait_for(|image| !reigns(image)).await;
}

/// A connection to the controller: frames are written and answered in order.
#[derive(Clone)]
struct Connection {
    frames: mpsc::Sender<(BytesMut, oneshot::Sender<(i32, Bytes)>)>,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Unanswered = Mutex<VecDeque<(i32, oneshot::Sender<(i32, Bytes)>)>>;

impl Connection {
    async fn open(address: &Address) -> io::Result<Self> {
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let (frames, queue) = mpsc::channel(FRAME_QUEUE);
        let task = tokio::spawn(async move {
            let unanswered = Unanswered::default();
            let ended = tokio::select! {
                ended = write_frames(writer, queue, &unanswered) => ended,
                ended = read_frames(reader, &unanswered) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "the connection to the controller was lost");
            }
        });
        Ok(Self {
            frames,
            _task: Arc::new(AbortOnDrop(task.abort_handle())),
        })
    }

    fn is_open(&self) -> bool {
        !self.frames.is_closed()
    }

    async fn call<R: RequestResponsePair>(
        &self,
        version: i16,
        request: &R,
    ) -> Result<R::Response, Tried> {
        let mut bytes = BytesMut::new();
        let encoded = messages::encode_request(
            &mut bytes,
            0,
            Some(StrBytes::from("yuxi-controller-link")),
            request,
            ApiVersion::new(version),
            OutboundFrameLimits::new(i32::MAX as usize),
        );
        if let Err(error) = encoded {
            let error = ControllerError::InvalidRequest(error.to_string());
            return Err(Tried::Answered(Err(error)));
        }
        let (reply, answer) = oneshot::channel();
        if self.frames.send((bytes, reply)).await.is_err() {
            return Err(Tried::NotDone);
        }
        let (correlation_id, answer) = answer.await.map_err(|_| Tried::InDoubt)?;
        frame::decode_response::<R::Response>(
            answer,
            correlation_id,
            version,
            frame::response_limits(MAX_FRAME_BYTES),
        )
        .map_err(|error| {
            tracing::warn!(%error, "a strange answer from the controller");
            Tried::InDoubt
        })
    }
}

async fn write_frames(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(BytesMut, oneshot::Sender<(i32, Bytes)>)>,
    unanswered: &Unanswered,
) -> io::Result<()> {
    let mut correlation_id: i32 = 0;
    while let Some((mut bytes, reply)) = queue.recv().await {
        correlation_id = correlation_id.wrapping_add(1) & i32::MAX;
        bytes[CORRELATION_AT..CORRELATION_AT + 4].copy_from_slice(&correlation_id.to_be_bytes());
        lock(unanswered).push_back((correlation_id, reply));
        writer.write_all(&bytes).await?;
    }
    Ok(())
}

async fn read_frames(mut reader: OwnedReadHalf, unanswered: &Unanswered) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let answer = read_frame(&mut reader, &mut buffer, MAX_FRAME_BYTES).await?;
        let first = lock(unanswered).pop_front();
        let Some((correlation_id, reply)) = first else {
            return Err(io::Error::other("an answer to nothing"));
        };
        // A caller that no longer waits is no concern of ours.
        let _ = reply.send((correlation_id, answer));
    }
}

/// Reads the next frame, without its length, through `buffer`.
pub(crate) async fn read_frame(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut BytesMut,
    limit: usize,
) -> io::Result<Bytes> {
    loop {
        if let Some(prefix) = buffer.first_chunk::<{ frame::LENGTH_PREFIX }>() {
            let length = frame::frame_length(*prefix, limit).map_err(io::Error::other)?;
            if buffer.len() >= frame::LENGTH_PREFIX + length {
                let mut whole = buffer.split_to(frame::LENGTH_PREFIX + length);
                return Ok(whole.split_off(frame::LENGTH_PREFIX).freeze());
            }
        }
        buffer.reserve(READ_BYTES);
        if reader.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
