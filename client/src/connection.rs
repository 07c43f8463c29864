//! One TCP connection to one broker, and the only module that opens sockets.
//!
//! Requests are pipelined: [`Connection::start`] numbers a request, queues its
//! frame and returns at once with a [`Reply`] to wait for, so requests started
//! in order are written in order, and a writer task and a reader task keep the
//! socket busy in between. Kafka answers in order, so the answers outstanding
//! are a queue; an answer whose correlation id is not the head's ends the
//! connection. So does a request that times out, because everything behind it
//! would be late too. The number of unanswered requests is bounded.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use yuxi_protocol::codec::{ApiVersion, DecodeLimits, Decoder, KafkaDecode, StrBytes};
use yuxi_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, KafkaMessage, KafkaRequest, OutboundFrameLimits,
    RequestResponsePair, ResponseHeader, encode_request, response_header_version_for,
};

use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::sync::lock;

/// Requests that may be unanswered on one connection.
const MAX_IN_FLIGHT: usize = 256;
/// Room for at least so much is made for a read, so that a small frame, length and all,
/// takes one.
const READ_BYTES: usize = 64 << 10;
/// A frame grows in such steps, so that a false length costs no memory.
const READ_STEP_BYTES: usize = 1 << 20;
/// Frames up to this size are joined into one write.
const COALESCE_BYTES: usize = 64 << 10;
/// The correlation id stands behind length, API key and version.
const CORRELATION_AT: usize = 8;
const UNSUPPORTED_VERSION: i16 = 35;

/// A handle on a connection; clones share it, and it closes with the last one.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    address: Arc<str>,
    client_id: StrBytes,
    request_timeout: Duration,
    receive_max_bytes: usize,
    frames: mpsc::UnboundedSender<Bytes>,
    in_flight: Arc<Semaphore>,
    shared: Arc<Shared>,
    offered: Offered,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the broker says of itself.
#[derive(Debug, Default)]
struct Offered {
    /// API key, oldest and newest version.
    apis: Vec<(i16, i16, i16)>,
    /// The features that the cluster has finalised, with their levels (KIP-584).
    features: Vec<(String, i16)>,
}

/// What the tasks and the handles have in common.
#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_correlation_id: i32,
    waiting: VecDeque<Waiting>,
    /// Why the connection ended, once it has.
    ended: Option<Error>,
}

#[derive(Debug)]
struct Waiting {
    correlation_id: i32,
    header_version: i16,
    answer: oneshot::Sender<Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Ends the connection for everyone: the first reason stands.
    fn end(&self, reason: &Error) {
        let waiting = {
            let mut queue = self.queue();
            queue.ended.get_or_insert_with(|| reason.clone());
            std::mem::take(&mut queue.waiting)
        };
        for request in waiting {
            let _ = request.answer.send(Err(reason.clone()));
        }
    }
}

impl Connection {
    /// Connects to `HOST:PORT` and asks which API versions the broker speaks, within
    /// `socket.connection.setup.timeout.ms` for both: a stopped process still has its
    /// connections accepted by the kernel, so connecting alone proves nothing.
    pub async fn open(address: &str, config: &ClientConfig) -> Result<Self> {
        let timeout = config.connect_timeout;
        tokio::time::timeout(timeout, Self::set_up(address, config))
            .await
            .unwrap_or_else(|_| {
                Err(Error::TimedOut {
                    what: format!("connecting to {address}"),
                    timeout_ms: timeout.as_millis() as u64,
                })
            })
    }

    async fn set_up(address: &str, config: &ClientConfig) -> Result<Self> {
        let connect_error = |source| Error::Connect {
            address: address.to_owned(),
            source: Arc::new(source),
        };
        let stream = TcpStream::connect(address).await.map_err(connect_error)?;
        stream.set_nodelay(true).map_err(connect_error)?;
        let (reader, writer) = stream.into_split();
        let (frames, queued) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let address: Arc<str> = address.into();
        let tasks = [
            tokio::spawn(write_frames(
                writer,
                queued,
                shared.clone(),
                address.clone(),
            ))
            .abort_handle(),
            tokio::spawn(read_frames(
                reader,
                shared.clone(),
                address.clone(),
                config.receive_max_bytes,
            ))
            .abort_handle(),
        ];
        let mut inner = Inner {
            address,
            client_id: StrBytes::from(config.client_id.as_str()),
            request_timeout: config.request_timeout,
            receive_max_bytes: config.receive_max_bytes,
            frames,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            shared,
            offered: Offered::default(),
            tasks,
        };
        inner.offered = inner.negotiate().await?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Host and port of the broker.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Whether the connection still stands, as far as is known.
    pub fn is_open(&self) -> bool {
        self.inner.shared.queue().ended.is_none()
    }

    /// Ends the connection for everyone who uses it, with `reason` as their outcome.
    pub(crate) fn end(&self, reason: &Error) {
        self.inner.end(reason);
    }

    /// The highest version of an API that both sides speak, at most `cap`.
    pub fn version<R: RequestResponsePair>(&self, cap: i16) -> Result<ApiVersion> {
        let ours = R::SUPPORTED_VERSIONS;
        let newest = R::API_DESCRIPTOR
            .latest_stable_version()
            .map_or(ours.max().value(), ApiVersion::value)
            .min(cap);
        let offered = self
            .inner
            .offered
            .apis
            .iter()
            .find(|(key, ..)| *key == R::API_KEY.value());
        let common = offered.and_then(|&(_, low, high)| {
            let version = newest.min(high);
            (version >= low && version >= ours.min().value()).then(|| ApiVersion::new(version))
        });
        common.ok_or_else(|| Error::Unsupported {
            address: self.inner.address.to_string(),
            api: R::NAME.strip_suffix("Request").unwrap_or(R::NAME),
            offered: offered.map_or_else(
                || "none".to_owned(),
                |(_, low, high)| format!("{low} to {high}"),
            ),
            needed: format!("{} to {newest}", ours.min()),
        })
    }

    /// The version, if the broker has it: where an older one would say something else.
    pub(crate) fn needs<R: RequestResponsePair>(&self, version: i16, why: &str) -> Result<i16> {
        if self.version::<R>(version)?.value() == version {
            return Ok(version);
        }
        Err(Error::Unsupported {
            address: self.address().to_owned(),
            api: R::NAME.strip_suffix("Request").unwrap_or(R::NAME),
            offered: format!("less than {version}"),
            needed: format!("{version}, {why}"),
        })
    }

    /// Whether the broker offers the API at all in a version that we speak.
    pub fn speaks<R: RequestResponsePair>(&self) -> bool {
        self.version::<R>(i16::MAX).is_ok()
    }

    /// The level of a feature that the cluster had finalised when the connection was
    /// opened (KIP-584); `None` if it had not.
    pub fn feature(&self, name: &str) -> Option<i16> {
        let features = &self.inner.offered.features;
        let found = features.iter().find(|(known, _)| known == name)?;
        Some(found.1)
    }

    /// Sends a request and waits for its answer. `build` makes the request for
    /// the version that was agreed on, because versions differ in their fields.
    pub async fn call<R>(&self, build: impl FnOnce(ApiVersion) -> R) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        self.call_up_to(i16::MAX, build).await
    }

    /// As [`Connection::call`], with no version above `cap`: for APIs whose newest
    /// versions name topics by ids that the caller does not have.
    pub async fn call_up_to<R>(
        &self,
        cap: i16,
        build: impl FnOnce(ApiVersion) -> R,
    ) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        let version = self.version::<R>(cap)?;
        self.start(&build(version), version, self.inner.request_timeout)
            .await?
            .answer()
            .await
    }

    /// Queues a request; the answer is awaited with [`Reply::answer`].
    pub async fn start<R>(
        &self,
        request: &R,
        version: ApiVersion,
        timeout: Duration,
    ) -> Result<Reply<R>>
    where
        R: RequestResponsePair,
    {
        let (answer, receiver) = oneshot::channel();
        self.inner.enqueue(request, version, Some(answer)).await?;
        Ok(Reply {
            connection: self.clone(),
            version,
            timeout,
            deadline: tokio::time::Instant::now() + timeout,
            receiver,
            request: PhantomData,
        })
    }

    /// Queues a request that the broker does not answer: a produce with acks=0.
    pub async fn start_unanswered<R>(&self, request: &R, version: ApiVersion) -> Result<()>
    where
        R: RequestResponsePair,
    {
        self.inner.enqueue(request, version, None).await
    }
}

impl Inner {
    async fn enqueue<R>(
        &self,
        request: &R,
        version: ApiVersion,
        answer: Option<oneshot::Sender<Result<Bytes>>>,
    ) -> Result<()>
    where
        R: RequestResponsePair,
    {
        let encode_error = |source| Error::Encode {
            what: R::NAME,
            source,
        };
        let header_version = response_header_version_for::<R>(version).map_err(encode_error)?;
        let mut frame = BytesMut::new();
        encode_request(
            &mut frame,
            0,
            Some(self.client_id.clone()),
            request,
            version,
            OutboundFrameLimits::new(i32::MAX as usize),
        )
        .map_err(encode_error)?;
        let permit = self
            .in_flight
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::Closed)?;
        let mut queue = self.shared.queue();
        if let Some(reason) = &queue.ended {
            return Err(reason.clone());
        }
        let correlation_id = queue.next_correlation_id;
        queue.next_correlation_id = correlation_id.wrapping_add(1) & i32::MAX;
        frame[CORRELATION_AT..CORRELATION_AT + 4].copy_from_slice(&correlation_id.to_be_bytes());
        if let Some(answer) = answer {
            queue.waiting.push_back(Waiting {
                correlation_id,
                header_version,
                answer,
                _permit: permit,
            });
        }
        // Queued while the lock is held, so that frames and answers have one order.
        // A closed channel means that the writer has ended and said why, or will.
        let _ = self.frames.send(frame.freeze());
        Ok(())
    }

    /// ApiVersions, with the fallback for brokers that know only older versions of it.
    async fn negotiate(&self) -> Result<Offered> {
        let mut version = ApiVersion::new(3);
        for _ in 0..2 {
            let mut request = ApiVersionsRequest::default();
            if version.value() >= 3 {
                request.client_software_name = "yuxi".into();
                request.client_software_version = env!("CARGO_PKG_VERSION").into();
            }
            let (answer, receiver) = oneshot::channel();
            self.enqueue(&request, version, Some(answer)).await?;
            let body = receiver.await.map_err(|_| self.disconnected("closed"))??;
            // Whatever was asked, a broker that lacks the version answers in version 0.
            let refused = body.get(..2) == Some(&UNSUPPORTED_VERSION.to_be_bytes()[..]);
            let spoken = if refused { ApiVersion::new(0) } else { version };
            let answer: ApiVersionsResponse = self.decode(body, spoken, "ApiVersions answer")?;
            if refused {
                let key = <ApiVersionsRequest as KafkaRequest>::API_KEY.value();
                let newest = answer
                    .api_keys
                    .iter()
                    .find(|row| row.api_key == key)
                    .map_or(0, |row| row.max_version);
                version = ApiVersion::new(newest.clamp(0, 2));
                continue;
            }
            crate::error::check(answer.error_code, None, || {
                format!("{} refused the connection", self.address)
            })?;
            let apis = answer.api_keys.iter();
            let features = answer.finalized_features.iter();
            return Ok(Offered {
                apis: apis
                    .map(|row| (row.api_key, row.min_version, row.max_version))
                    .collect(),
                features: features
                    .map(|row| (row.name.to_string(), row.max_version_level))
                    .collect(),
            });
        }
        Err(Error::Unsupported {
            address: self.address.to_string(),
            api: "ApiVersions",
            offered: "none".to_owned(),
            needed: "0 to 3".to_owned(),
        })
    }

    fn decode<M: KafkaMessage>(
        &self,
        body: Bytes,
        version: ApiVersion,
        what: &'static str,
    ) -> Result<M> {
        let mut limits = DecodeLimits::default();
        limits.max_frame_bytes = self.receive_max_bytes;
        limits.max_bytes_bytes = self.receive_max_bytes;
        M::decode_from_bytes(body, version, limits)
            .map_err(|source| Error::decode(what, &self.address, &source))
    }

    fn end(&self, reason: &Error) {
        self.shared.end(reason);
        for task in &self.tasks {
            task.abort();
        }
    }

    fn disconnected(&self, reason: &str) -> Error {
        Error::Disconnected {
            address: self.address.to_string(),
            reason: reason.into(),
        }
    }
}

/// An answer to come.
#[derive(Debug)]
pub struct Reply<R> {
    connection: Connection,
    version: ApiVersion,
    timeout: Duration,
    deadline: tokio::time::Instant,
    receiver: oneshot::Receiver<Result<Bytes>>,
    request: PhantomData<fn() -> R>,
}

impl<R: RequestResponsePair> Reply<R> {
    /// Waits for the answer, at most for the time given when the request was started.
    pub async fn answer(mut self) -> Result<R::Response> {
        self.answer_ref().await
    }

    /// As [`Reply::answer`] for a caller that also waits for other things: dropping the
    /// future loses nothing. Once it has resolved it must not be called again.
    pub async fn answer_ref(&mut self) -> Result<R::Response> {
        let inner = &self.connection.inner;
        match tokio::time::timeout_at(self.deadline, &mut self.receiver).await {
            Ok(Ok(body)) => inner.decode(body?, self.version, <R::Response as KafkaMessage>::NAME),
            Ok(Err(_)) => Err(inner.disconnected("closed")),
            Err(_) => {
                let error = Error::TimedOut {
                    what: format!("{} to {}", R::NAME, inner.address),
                    timeout_ms: self.timeout.as_millis() as u64,
                };
                inner.end(&error);
                Err(error)
            }
        }
    }
}

async fn write_frames(
    mut socket: OwnedWriteHalf,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
    shared: Arc<Shared>,
    address: Arc<str>,
) {
    const MOST_AT_ONCE: usize = 64;
    let mut frames = Vec::with_capacity(MOST_AT_ONCE);
    let mut joined = BytesMut::new();
    while queued.recv_many(&mut frames, MOST_AT_ONCE).await > 0 {
        for frame in frames.drain(..) {
            if joined.len() + frame.len() > COALESCE_BYTES && !joined.is_empty() {
                if let Err(error) = socket.write_all(&joined).await {
                    return shared.end(&lost(&address, &error.to_string()));
                }
                joined.clear();
            }
            if frame.len() > COALESCE_BYTES {
                if let Err(error) = socket.write_all(&frame).await {
                    return shared.end(&lost(&address, &error.to_string()));
                }
            } else {
                joined.put_slice(&frame);
            }
        }
        if !joined.is_empty() {
            if let Err(error) = socket.write_all(&joined).await {
                return shared.end(&lost(&address, &error.to_string()));
            }
            joined.clear();
        }
    }
}

async fn read_frames(
    mut socket: OwnedReadHalf,
    shared: Arc<Shared>,
    address: Arc<str>,
    max_bytes: usize,
) {
    let mut buffer = BytesMut::new();
    let reason = loop {
        match read_frame(&mut socket, &mut buffer, max_bytes, &address).await {
            Ok(frame) => {
                if let Err(error) = deliver(&shared, &frame, &address) {
                    break error;
                }
            }
            Err(error) => break error,
        }
    };
    shared.end(&reason);
}

async fn read_frame(
    socket: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    max_bytes: usize,
    address: &str,
) -> Result<Bytes> {
    fill(socket, buffer, 4, address).await?;
    let declared = buffer.get_i32();
    let length = usize::try_from(declared)
        .ok()
        .filter(|length| *length <= max_bytes);
    let Some(length) = length else {
        return Err(Error::Malformed {
            what: "answer",
            address: address.to_owned(),
            detail: format!(
                "a frame of {declared} bytes; receive.message.max.bytes is {max_bytes}"
            ),
        });
    };
    fill(socket, buffer, length, address).await?;
    Ok(buffer.split_to(length).freeze())
}

/// Reads until `buffer` holds `length` bytes, and possibly more.
async fn fill(
    socket: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    length: usize,
    address: &str,
) -> Result<()> {
    while buffer.len() < length {
        buffer.reserve((length - buffer.len()).clamp(READ_BYTES, READ_STEP_BYTES));
        match socket.read_buf(buffer).await {
            Ok(0) => return Err(lost(address, "closed by the broker")),
            Ok(_) => {}
            Err(error) => return Err(lost(address, &error.to_string())),
        }
    }
    Ok(())
}

/// Gives the answer to the request at the head of the queue.
fn deliver(shared: &Shared, frame: &Bytes, address: &str) -> Result<()> {
    let malformed = |detail: String| Error::Malformed {
        what: "answer header",
        address: address.to_owned(),
        detail,
    };
    let correlation_id = frame
        .first_chunk::<4>()
        .map(|bytes| i32::from_be_bytes(*bytes))
        .ok_or_else(|| malformed(format!("a frame of {} bytes", frame.len())))?;
    let request = shared
        .queue()
        .waiting
        .pop_front_if(|head| head.correlation_id == correlation_id)
        .ok_or_else(|| {
            malformed(format!(
                "correlation id {correlation_id}, which is not the next outstanding"
            ))
        })?;
    let mut decoder = Decoder::new(frame.clone(), frame_limits(frame.len()))
        .map_err(|source| malformed(source.to_string()))?;
    ResponseHeader::decode(&mut decoder, ApiVersion::new(request.header_version))
        .map_err(|source| malformed(source.to_string()))?;
    let body = frame.slice(frame.len() - decoder.remaining()..);
    // A caller that no longer waits has dropped its end.
    let _ = request.answer.send(Ok(body));
    Ok(())
}

fn frame_limits(bytes: usize) -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = bytes;
    limits
}

fn lost(address: &str, reason: &str) -> Error {
    Error::Disconnected {
        address: address.to_owned(),
        reason: reason.into(),
    }
}
