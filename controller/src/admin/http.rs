//! The operator's HTTP listener: `/healthz`, `/readyz` and `/metrics`.
//!
//! Nothing here changes anything. The listener owns its connections and bounds them in
//! number, in the size of a request's head and in time, so that whoever reaches it
//! can't take more from the daemon than a scrape does. hyper speaks HTTP.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use super::{Observed, Readiness};

/// Connections beyond this wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, a slow reader's too. Each serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest head of a request; hyper allows no smaller buffer.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How long to wait after an accept has failed, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `listener` until `stop` is ready, then ends its connections.
pub async fn serve(
    listener: TcpListener,
    observed: Arc<impl Observed>,
    stop: impl Future<Output = ()>,
) {
    let admin = Admin { observed };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => {}
            (permit, accepted) = accept => match accepted {
                Ok((stream, _)) => {
                    let admin = admin.clone();
                    connections.spawn(async move {
                        admin.serve_connection(stream, HEAD_TIMEOUT).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener can't accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

struct Admin<O> {
    observed: Arc<O>,
}

impl<O> Clone for Admin<O> {
    fn clone(&self) -> Self {
        let observed = Arc::clone(&self.observed);
        Self { observed }
    }
}

impl<O: Observed> Admin<O> {
    async fn serve_connection(self, stream: TcpStream, head_timeout: Duration) {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(request.method(), request.uri().path())) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // However it ends, it is over, and the client knows more about it than we do.
        if let Ok(Err(error)) = time::timeout(CONNECTION_TIMEOUT, connection).await {
            tracing::debug!(%error, "an admin connection ended early");
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
            return text(
                StatusCode::NOT_FOUND,
                "there are /healthz, /readyz and /metrics\n",
            );
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/metrics" => respond(StatusCode::OK, EXPOSITION, self.observed.metrics()),
            "/healthz" => health(&self.observed.readiness()),
            _ => readiness(&self.observed.readiness()),
        }
    }
}

/// Whether the process is worth keeping: a supervisor restarts it if not. That would not
/// bring back a store that is away.
fn health(readiness: &Readiness) -> Response<Full<Bytes>> {
    match readiness {
        Readiness::Starting | Readiness::Waiting(_) | Readiness::Ready | Readiness::Stopping => {
            text(StatusCode::OK, "ok\n")
        }
        Readiness::Failed(why) => failed(why),
    }
}

/// Whether clients can be sent here.
fn readiness(readiness: &Readiness) -> Response<Full<Bytes>> {
    match readiness {
        Readiness::Ready => text(StatusCode::OK, "ready\n"),
        Readiness::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Readiness::Waiting(why) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            format!("waiting: {why}\n"),
        ),
        Readiness::Stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Readiness::Failed(why) => failed(why),
    }
}

fn failed(why: &str) -> Response<Full<Bytes>> {
    respond(
        StatusCode::SERVICE_UNAVAILABLE,
        TEXT,
        format!("failed: {why}\n"),
    )
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, TEXT, body)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Mutex};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
    };

    use super::*;

    #[derive(Default)]
    struct Daemon(Mutex<Readiness>);

    impl Observed for Daemon {
        fn readiness(&self) -> Readiness {
            self.0.lock().expect("no panic").clone()
        }

        fn metrics(&self) -> String {
            "a_metric 1\n".to_owned()
        }
    }

    struct Server {
        address: SocketAddr,
        daemon: Arc<Daemon>,
        stop: Option<oneshot::Sender<()>>,
        done: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let daemon = Arc::new(Daemon::default());
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(serve(listener, Arc::clone(&daemon), async {
            stopped.await.ok();
        }));
        Server {
            address,
            daemon,
            stop: Some(stop),
            done,
        }
    }

    impl Server {
        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address)
                .await
                .expect("a connection");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        }

        async fn get(&self, path: &str) -> String {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
                .await
        }

        fn set(&self, readiness: Readiness) {
            *self.daemon.0.lock().expect("no panic") = readiness;
        }
    }

    #[tokio::test]
    async fn a_daemon_is_ready_between_its_start_and_its_stop_and_healthy_all_along() {
        let server = start().await;
        for (readiness, ready, healthy) in [
            (Readiness::Starting, "503", "200"),
            (Readiness::Waiting("no etcd".to_owned()), "503", "200"),
            (Readiness::Ready, "200", "200"),
            (Readiness::Stopping, "503", "200"),
            (
                Readiness::Failed("the disk is gone".to_owned()),
                "503",
                "503",
            ),
        ] {
            server.set(readiness.clone());
            for (path, status) in [("/readyz", ready), ("/healthz", healthy)] {
                let answer = server.get(path).await;
                let expected = format!("HTTP/1.1 {status} ");
                assert!(
                    answer.starts_with(&expected),
                    "{readiness:?} {path}: {answer}"
                );
            }
        }
        assert!(
            server
                .get("/readyz")
                .await
                .ends_with("failed: the disk is gone\n")
        );
    }

    #[tokio::test]
    async fn metrics_are_in_prometheus_text_format() {
        let server = start().await;
        let answer = server.get("/metrics").await;
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(answer.contains("\na_metric 1\n"));
    }

    #[tokio::test]
    async fn what_is_not_served_is_refused() {
        let server = start().await;
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
            ("GET /metrics/../x HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
            (
                "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                "405",
            ),
            ("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
            ("\0\0\0\x13 not http\r\n\r\n", "400"),
        ] {
            let answer = server.send(request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {answer}"
            );
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD_BYTES));
        assert!(!server.send(&long).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_and_are_served_when_others_end() {
        let server = start().await;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(
                TcpStream::connect(server.address)
                    .await
                    .expect("a connection"),
            );
        }
        // The idle ones are accepted first, since the kernel's queue keeps its order.
        let waiting = server.get("/healthz");
        tokio::pin!(waiting);
        let soon = time::timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(soon.is_err(), "served beyond the bound: {soon:?}");
        drop(idle.pop());
        let answer = time::timeout(Duration::from_secs(20), waiting).await;
        assert!(answer.expect("served in time").starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_request_is_disconnected() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(b"GET /metrics HT").await.expect("sent");
        let (stream, _) = listener.accept().await.expect("accepted");
        let observed = Arc::new(Daemon::default());
        let admin = Admin { observed };
        let served = admin.serve_connection(stream, Duration::from_millis(20));
        // Well before CONNECTION_TIMEOUT, so that it is the head's time-out that is seen.
        let ended = time::timeout(CONNECTION_TIMEOUT / 2, served).await;
        ended.expect("disconnected in time");
    }

    #[tokio::test]
    async fn stopping_ends_the_connections() {
        let mut server = start().await;
        let mut idle = TcpStream::connect(server.address)
            .await
            .expect("a connection");
        assert!(server.get("/healthz").await.ends_with("ok\n"));
        drop(server.stop.take());
        (&mut server.done).await.expect("no panic");
        let mut rest = Vec::new();
        let ended = time::timeout(Duration::from_secs(10), idle.read_to_end(&mut rest)).await;
        ended.expect("ended in time").ok();
        assert!(rest.is_empty());
    }
}
