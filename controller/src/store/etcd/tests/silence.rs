//! A member whose connection lives while a watch over it says nothing. HTTP/2 does not notice
//! that, so no real etcd that is killed, stopped or cut off shows what the watch does itself.
//! And one of a version that no machine has any more.

use h2::{RecvStream, SendStream, server};
use hyper::{HeaderMap, Response, header};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

/// Answers of gRPC: a flag and a length, then the message. Both messages begin with the header
/// that names etcd 1 at revision 1.
///
/// Version 3.5.0, led by member 1.
const STATUS: &[u8] = b"\0\0\0\0\x0f\x0a\x04\x08\x01\x18\x01\x12\x053.5.0\x20\x01";
/// The same of version 3.3.9.
const OLD_STATUS: &[u8] = b"\0\0\0\0\x0f\x0a\x04\x08\x01\x18\x01\x12\x053.3.9\x20\x01";
/// The watch is there.
const CREATED: &[u8] = b"\0\0\0\0\x08\x0a\x04\x08\x01\x18\x01\x18\x01";

/// Where the request begins in what was sent, and how one for progress begins.
const REQUEST_AT: usize = 5;
const ASKS_FOR_PROGRESS: u8 = 3 << 3 | 2;

/// What an etcd is asked for on its watches.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Watch,
    SignOfLife,
}

/// Serves watches on which nothing ever happens and no question is answered.
async fn serve(stream: TcpStream, status: &'static [u8], asked: mpsc::UnboundedSender<Asked>) {
    let mut connection = server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let head = Response::builder().header(header::CONTENT_TYPE, "application/grpc");
        let head = head.body(()).expect("a head");
        let mut answer = respond.send_response(head, false).expect("it is open");
        if request.uri().path().ends_with("/Watch") {
            tokio::spawn(watched(request.into_body(), answer, asked.clone()));
        } else {
            let mut done = HeaderMap::new();
            done.insert("grpc-status", "0".parse().expect("a value"));
            answer.send_data(status.into(), false).expect("it is open");
            answer.send_trailers(done).expect("it is open");
        }
    }
}

async fn watched(
    mut requests: RecvStream,
    mut answer: SendStream<Bytes>,
    asked: mpsc::UnboundedSender<Asked>,
) {
    while let Some(Ok(request)) = requests.data().await {
        if request.get(REQUEST_AT) == Some(&ASKS_FOR_PROGRESS) {
            let _ = asked.send(Asked::SignOfLife);
        } else {
            let _ = asked.send(Asked::Watch);
            let _ = answer.send_data(CREATED.into(), false);
        }
    }
}

/// Where something listens that says this of itself, and what it is asked for.
async fn start(status: &'static [u8]) -> (String, mpsc::UnboundedReceiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, status, asked.clone()));
        }
    });
    (url, questions)
}

#[tokio::test]
async fn an_etcd_that_is_too_old_is_refused_by_its_version() {
    let (url, _questions) = start(OLD_STATUS).await;
    let error = refusal(options(&url)).await;
    let StoreError::Denied(why) = &error else {
        panic!("expected it to be denied, got {error:?}");
    };
    assert!(
        why.contains("version 3.3.9") && why.contains("3.4 or later"),
        "{why}"
    );
}

#[tokio::test]
async fn a_watch_that_is_silent_on_a_connection_that_lives_is_asked_and_then_begun_anew() {
    let (url, mut questions) = start(STATUS).await;
    let connection = Connection::new(EtcdOptions {
        request_timeout: Duration::from_secs(4),
        ..options(&url)
    });
    let store = EtcdStore {
        connection: Arc::new(connection.unwrap()),
        prefix: "/".into(),
    };
    let mut watch = store.watch("", Revision::new(1)).await.unwrap();
    tokio::spawn(async move { watch.next().await });
    for expected in [Asked::Watch, Asked::SignOfLife, Asked::Watch] {
        let comes = async {
            while let Some(question) = questions.recv().await
                && question != expected
            {}
        };
        let came = timeout(DEADLINE, comes).await;
        came.unwrap_or_else(|_| panic!("the watch never came to {expected:?}"));
    }
}
