//! Accepts connections on one address and gives each its own task.

use super::{connection, limits::ConnectionCounts};
use crate::node::Node;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use yuxi_controller::settings::{HostPort, ServerSettings};

/// After a failed accept (out of file descriptors, mostly), wait for some to be freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to end: they drain by themselves, unless their client
/// does not read.
const ENDING_TIME: Duration = connection::DRAIN_TIME.saturating_add(Duration::from_secs(1));

/// Binds `address`; an empty host is every address of the machine. The port can be taken
/// again at once after a restart.
pub(crate) async fn bind(address: &HostPort) -> io::Result<TcpListener> {
    let host = if address.host.is_empty() {
        "::"
    } else {
        &address.host
    };
    TcpListener::bind((host, address.port)).await
}

/// Serves until `stop` turns true, then lets every connection end what it began.
pub(crate) async fn serve(listener: TcpListener, node: Arc<Node>, mut stop: watch::Receiver<bool>) {
    let counts = Arc::new(ConnectionCounts::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|&stopping| stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer): (_, SocketAddr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let settings = node.live_settings();
        let limit = |value: i32| usize::try_from(value).unwrap_or(0);
        let admission = match counts.admit(
            peer.ip(),
            limit(settings.max_connections),
            limit(settings.max_connections_per_ip),
        ) {
            Ok(admission) => admission,
            Err(refusal) => {
                node.metrics.connection_refused();
                tracing::warn!(%peer, %refusal, "a connection was turned away");
                continue;
            }
        };
        if let Err(error) = set_buffers(&stream, &settings) {
            tracing::warn!(%peer, %error, "the socket's buffers stay as they are");
        }
        let (node, stop) = (Arc::clone(&node), stop.clone());
        node.metrics.connection_opened();
        connections.spawn(async move {
            connection::serve(stream, peer, Arc::clone(&node), stop).await;
            node.metrics.connection_closed();
            drop(admission);
        });
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(ENDING_TIME, ended).await.is_err() {
        // A client that takes no bytes keeps its connection from noticing the stop.
        connections.shutdown().await;
    }
}

fn set_buffers(stream: &TcpStream, settings: &ServerSettings) -> io::Result<()> {
    // -1 leaves a buffer to the system.
    if let Ok(bytes) = usize::try_from(settings.socket_send_buffer_bytes) {
        rustix::net::sockopt::set_socket_send_buffer_size(stream, bytes)?;
    }
    if let Ok(bytes) = usize::try_from(settings.socket_receive_buffer_bytes) {
        rustix::net::sockopt::set_socket_recv_buffer_size(stream, bytes)?;
    }
    Ok(())
}
