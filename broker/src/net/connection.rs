//! One client connection: frames in, answers out in the order of the requests.
//!
//! The task owns the socket, the bytes read so far and the queue of requests that
//! are started and not yet answered. Requests are pipelined: each is started as
//! soon as it is read, without waiting for the answers before it, unless its API
//! says that it must see the effects of those before it ([`Order::InTurn`]).

use super::answer::Outbox;
use crate::{
    api::{self, Order, Request, Started, Timing},
    node::Node,
    partition,
};
use bytes::{Buf, Bytes, BytesMut};
use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch, time::Instant};
use yuxi_protocol::frame::{self, FrameError, RequestHead};

/// Requests of one connection that may be started and unanswered. Clients send at
/// most five produces without an answer; the rest is room for others.
const MAX_UNANSWERED: usize = 128;

/// The read buffer grows by at least this much at a time.
const READ_BYTES: usize = 64 * 1024;

/// Of a frame's declared size this much is believed at once; beyond it the buffer
/// only grows as bytes really arrive.
const BELIEVED_BYTES: usize = 1024 * 1024;

/// Frames below this size are copied out of the read buffer, so that a small request
/// which waits long does not keep the whole buffer alive.
const COPY_BELOW_BYTES: usize = 4 * 1024;

/// What an idle time of -1 stands for.
const FOR_EVER: Duration = Duration::from_hours(100 * 365 * 24);

/// How long a client may be silent in the middle of a large frame: until that is read,
/// others wait for the bytes that it takes of the budget.
const STALLED_FRAME: Duration = Duration::from_secs(30);

/// How long a stopping broker waits for the answers that are under way.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Why a connection was closed by this side.
#[derive(Debug, thiserror::Error)]
enum Closing {
    #[error("the client closed the connection")]
    ByClient,
    #[error("idle for longer than connections.max.idle.ms")]
    Idle,
    #[error("the broker is stopping")]
    Stopping,
    #[error("a frame declares {declared} bytes; socket.request.max.bytes allows {allowed}")]
    FrameSize { declared: i32, allowed: usize },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] api::Unanswerable),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves `stream` until either side closes it.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    node: Arc<Node>,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let mut connection = Connection {
        max_frame_bytes: node.max_frame_bytes(),
        max_unanswered_bytes: usize::try_from(node.settings.connection_in_flight_max_bytes)
            .unwrap_or(usize::MAX),
        max_idle: u64::try_from(node.settings.connections_max_idle_ms)
            .map_or(FOR_EVER, Duration::from_millis),
        stream,
        peer,
        connected: std::time::Instant::now(),
        node,
        stop,
        buffer: BytesMut::new(),
        permit: None,
        broken: None,
        waiting: VecDeque::new(),
        outbox: Outbox::default(),
        last_active: Instant::now(),
    };
    match connection.run().await {
        Closing::ByClient | Closing::Stopping => {}
        Closing::Idle => tracing::debug!(%peer, "idle connection closed"),
        Closing::Io(error) => tracing::debug!(%peer, %error, "connection lost"),
        Closing::Request(why @ api::Unanswerable::MayBeLate) => {
            tracing::info!(%peer, reason = %why, "connection closed");
        }
        bad => {
            connection.node.metrics.request_malformed();
            tracing::warn!(%peer, reason = %bad, "connection closed");
        }
    }
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    connected: std::time::Instant,
    node: Arc<Node>,
    stop: watch::Receiver<bool>,
    max_frame_bytes: usize,
    /// Bytes of requests that may be started and unanswered; one is always let in.
    max_unanswered_bytes: usize,
    max_idle: Duration,
    /// Bytes read and not yet started.
    buffer: BytesMut,
    /// The byte budget's permit for the frame at the front of `buffer`.
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
    /// What was wrong with the last request. Nothing is read after it, and the connection
    /// ends when all before it are answered.
    broken: Option<Closing>,
    /// Started and unanswered, oldest first.
    waiting: VecDeque<Unanswered>,
    outbox: Outbox,
    last_active: Instant,
}

struct Unanswered {
    /// The request's size.
    bytes: usize,
    order: Order,
    progress: Started,
    timing: Timing,
}

impl Connection {
    async fn run(&mut self) -> Closing {
        loop {
            if let Err(closing) = self.turn().await {
                if matches!(closing, Closing::Stopping) {
                    self.drain().await;
                }
                return closing;
            }
        }
    }

    /// Starts what was read, sends what is ready, then waits for more of either.
    async fn turn(&mut self) -> Result<(), Closing> {
        // An answer that goes out may let a request start that is read already.
        loop {
            self.start_requests().await?;
            if !self.send_answers().await? {
                break;
            }
        }
        if self.waiting.is_empty() && self.buffer.is_empty() && self.buffer.capacity() > READ_BYTES
        {
            // A large frame is done with: an idle connection keeps no memory of it.
            self.buffer = BytesMut::new();
        }
        if self.waiting.is_empty()
            && let Some(broken) = self.broken.take()
        {
            return Err(broken);
        }
        let may_read = self.may_read();
        let patience = match self.permit {
            Some(_) => self.max_idle.min(STALLED_FRAME),
            None => self.max_idle,
        };
        let deadline = self.last_active + patience;
        let readable = tokio::select! {
            biased;
            () = ReadyAnswers(&mut self.waiting) => false,
            readable = self.stream.readable(), if may_read => {
                readable?;
                true
            }
            _ = self.stop.wait_for(|&stopping| stopping) => return Err(Closing::Stopping),
            () = tokio::time::sleep_until(deadline),
                if self.waiting.is_empty() || self.permit.is_some() =>
            {
                return Err(Closing::Idle);
            }
        };
        if readable { self.read() } else { Ok(()) }
    }

    /// Bytes are read while another request may be started once they are here.
    fn may_read(&self) -> bool {
        let bytes: usize = self.waiting.iter().map(|request| request.bytes).sum();
        self.broken.is_none()
            && self.waiting.len() < MAX_UNANSWERED
            && (bytes < self.max_unanswered_bytes || self.waiting.is_empty())
            && !matches!(self.waiting.back(), Some(last) if last.order == Order::InTurn)
    }

    fn read(&mut self) -> Result<(), Closing> {
        let missing = match declared_size(&self.buffer) {
            Some(declared) => (4 + declared as usize).saturating_sub(self.buffer.len()),
            None => 0,
        };
        let believed = missing.min(BELIEVED_BYTES.max(self.buffer.len()));
        self.buffer.reserve(believed.max(READ_BYTES));
        // Unlike `try_read_buf`, this takes a read that does not fill the buffer for the last
        // one, and saves the call that would say so.
        let read = pin!(self.stream.read_buf(&mut self.buffer));
        match read.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(0)) => Err(Closing::ByClient),
            Poll::Ready(Ok(_)) => {
                self.last_active = Instant::now();
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Starts what was read.
    async fn start_requests(&mut self) -> Result<(), Closing> {
        // What followers hear of is then all that was read together, not the first of it.
        while let Some(size) = partition::wake_after(|| self.start_affordable()) {
            // The answers that are ready go out first: whoever waits for them may be the one
            // that holds the budget.
            self.send_answers().await?;
            self.permit = self.node.byte_budget.take(size).await;
        }
        Ok(())
    }

    /// Starts what was read as far as the byte budget allows; returns how much of that the
    /// next frame takes, if it is what there is not enough of.
    fn start_affordable(&mut self) -> Option<usize> {
        while self.may_read() {
            let declared = declared_size(&self.buffer)?;
            let size = usize::try_from(declared).unwrap_or(usize::MAX);
            if size > self.max_frame_bytes {
                self.broken = Some(Closing::FrameSize {
                    declared,
                    allowed: self.max_frame_bytes,
                });
                return None;
            }
            if self.permit.is_none() {
                let Ok(permit) = self.node.byte_budget.try_take(size) else {
                    return Some(size);
                };
                self.permit = permit;
            }
            if self.buffer.len() < 4 + size {
                return None;
            }
            self.buffer.advance(4);
            let frame = if size < COPY_BELOW_BYTES {
                let frame = Bytes::copy_from_slice(&self.buffer[..size]);
                self.buffer.advance(size);
                frame
            } else {
                self.buffer.split_to(size).freeze()
            };
            self.broken = self.start(frame).err();
            self.permit = None;
        }
        None
    }

    /// Starts one request.
    fn start(&mut self, frame: Bytes) -> Result<(), Closing> {
        let bytes = frame.len();
        let (head, body) = RequestHead::decode(frame, frame::request_limits(self.max_frame_bytes))?;
        let api = api::find(&head)?;
        let timing = Timing::start(&self.node, &head);
        let request = Request {
            head,
            body,
            peer: self.peer,
            connected: self.connected,
            node: Arc::clone(&self.node),
        };
        let progress = if api.order == Order::InTurn && !self.waiting.is_empty() {
            // A future is not polled before it is first in the queue, so the request
            // starts when all those before it are answered.
            let start = api.start;
            Started::Pending(Box::pin(async move { start(request).outcome().await }))
        } else {
            (api.start)(request)
        };
        let order = match progress {
            Started::Held(_) => Order::InTurn,
            Started::Ready(_) | Started::Pending(_) => api.order,
        };
        self.waiting.push_back(Unanswered {
            bytes,
            order,
            progress,
            timing,
        });
        Ok(())
    }

    /// Sends the answers at the front of the queue that are ready. False if there were none.
    async fn send_answers(&mut self) -> Result<bool, Closing> {
        let unanswered = self.waiting.len();
        let mut failed = None;
        while let Some(first) = self.waiting.pop_front() {
            let Started::Ready(answer) = first.progress else {
                self.waiting.push_front(first);
                break;
            };
            match answer {
                Ok(answer) => {
                    first.timing.done(answer.len());
                    self.outbox.push(answer);
                }
                // Those before it are still sent.
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if !self.outbox.is_empty() {
            // A client that takes nothing for as long as an idle one may stay is gone.
            tokio::time::timeout(self.max_idle, self.outbox.send_all(&self.stream))
                .await
                .map_err(|_| Closing::Idle)??;
            self.last_active = Instant::now();
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(self.waiting.len() < unanswered),
        }
    }

    /// What was started before the broker began to stop is still answered.
    async fn drain(&mut self) {
        let ended = async {
            while !self.waiting.is_empty() {
                ReadyAnswers(&mut self.waiting).await;
                if self.send_answers().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME, ended).await;
    }
}

/// The size that the frame at the front of `buffer` declares, once its four bytes are
/// there. Negative sizes are kept: the caller refuses them.
fn declared_size(buffer: &BytesMut) -> Option<i32> {
    buffer
        .first_chunk::<4>()
        .map(|prefix| i32::from_be_bytes(*prefix))
}

/// Resolves when the oldest unanswered request has its answer; never, if there is none.
/// Those behind it that have theirs too are then ready as well: one move of the high
/// watermark acknowledges many produces, whose answers go out together.
struct ReadyAnswers<'a>(&'a mut VecDeque<Unanswered>);

impl Future for ReadyAnswers<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut any = Poll::Pending;
        for request in self.get_mut().0.iter_mut() {
            if let Started::Pending(future) | Started::Held(future) = &mut request.progress {
                match future.as_mut().poll(context) {
                    Poll::Ready(answer) => request.progress = Started::Ready(answer),
                    Poll::Pending => break,
                }
            }
            any = Poll::Ready(());
        }
        any
    }
}
