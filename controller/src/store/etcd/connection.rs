//! The connection to etcd: one member at a time, the next when that one fails.
//!
//! The members are taken in turns. Whoever finds that the member of a turn does not
//! answer ends the turn ([`Connection::leave`]), and everybody moves on: calls with
//! their next attempt, watches at once. Members are not used side by side, since one
//! that is stopped still accepts connections, and would swallow its share of all calls.
//! Invariant: all members that are used belong to one etcd.

use std::{future::Future, path::Path, sync::OnceLock, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, ResponseHeader, TlsOptions};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use super::{
    EtcdOptions, EtcdTls,
    errors::{Failure, Place, classify},
};
use crate::store::StoreError;

/// The oldest etcd that has what is used here: progress requests on watches.
const OLDEST_VERSION: (u32, u32) = (3, 4);

/// How often a connection with an open stream is probed while nothing comes. etcd closes
/// connections that are probed more often than every 5 seconds.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);

/// Whether a request may be sent again when it may already have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice is as good as once.
    Freely,
    /// Only if the first had no effect for sure.
    IfNotDone,
}

/// A member that answered.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) client: Client,
    pub(super) turn: u64,
}

pub(super) struct Connection {
    options: EtcdOptions,
    client_options: ConnectOptions,
    /// Counts up; the endpoint is its remainder.
    turn: watch::Sender<u64>,
    member: Mutex<Option<Member>>,
    /// The id of the etcd that was met first.
    etcd: OnceLock<u64>,
}

impl Connection {
    pub(super) fn new(options: EtcdOptions) -> Result<Self, StoreError> {
        if options.endpoints.is_empty() {
            return Err(StoreError::Denied("etcd.endpoints names none".to_owned()));
        }
        let mut client_options = ConnectOptions::new()
            .with_connect_timeout(options.request_timeout)
            .with_keep_alive(KEEP_ALIVE_INTERVAL, options.request_timeout)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &options.user {
            client_options = client_options.with_user(user, password);
        }
        if let Some(tls) = &options.tls {
            client_options = client_options.with_tls(tls_options(tls)?);
        }
        Ok(Self {
            options,
            client_options,
            turn: watch::Sender::new(0),
            member: Mutex::new(None),
            etcd: OnceLock::new(),
        })
    }

    /// How long one member may take to answer.
    pub(super) fn request_timeout(&self) -> Duration {
        self.options.request_timeout
    }

    /// Which turn it is, and when that changes.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.turn.subscribe()
    }

    /// Ends `turn`, if it isn't over already.
    pub(super) fn leave(&self, turn: u64) {
        self.turn.send_if_modified(|now| {
            let is_now = *now == turn;
            *now += u64::from(is_now);
            is_now
        });
    }

    /// What an error at the member of `turn` is about.
    pub(super) fn place(&self, turn: u64) -> Place<'_> {
        let endpoints = &self.options.endpoints;
        Place {
            url: &endpoints[(turn % endpoints.len() as u64) as usize],
            prefix: &self.options.prefix,
            user: self.options.user.as_ref().map(|(user, _)| user.as_str()),
        }
    }

    /// Sends a request to a member, and to the next if that one fails and `repeat` allows
    /// it. Each endpoint gets its time-out once, so this ends.
    pub(super) async fn call<T, F>(
        &self,
        repeat: Repeat,
        request: impl Fn(Member) -> F + Send + Sync,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let endpoints = self.options.endpoints.len() as u32;
        let started = Instant::now();
        // A single endpoint gets a second chance when the first fails at once, as when
        // etcd was restarted under an open connection.
        let mut attempts_left = endpoints.max(2);
        // A member that may come back leaves hope, whatever is wrong with the others.
        let mut away = None;
        loop {
            attempts_left -= 1;
            let failure = match self.attempt(&request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let again = match &failure {
                Failure::NotDone(_) | Failure::Misfit(_) => true,
                Failure::Unsure(_) => repeat == Repeat::Freely,
                Failure::Settled(_) | Failure::Compacted | Failure::ReplyTooLarge => false,
            };
            let patience = self.options.request_timeout * endpoints;
            if !again || attempts_left == 0 || started.elapsed() >= patience {
                return Err(match (failure, away) {
                    (Failure::Misfit(_), Some(why)) => Failure::NotDone(why),
                    (failure, _) => failure,
                });
            }
            if let Failure::NotDone(why) = failure {
                away = Some(why);
            }
        }
    }

    async fn attempt<T, F>(&self, request: impl Fn(Member) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Others may be trying to open one, and fail one after the other.
        let patience = self.options.request_timeout * 2;
        let member = match timeout(patience, self.member()).await {
            Ok(member) => member?,
            Err(_) => return Err(Failure::NotDone(self.no_answer(*self.turn.borrow()))),
        };
        let turn = member.turn;
        let failure = match timeout(self.options.request_timeout, request(member)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => classify(&error, &self.place(turn)),
            Err(_) => Failure::Unsure(self.no_answer(turn)),
        };
        if let Failure::NotDone(_) | Failure::Unsure(_) = failure {
            self.leave(turn);
        }
        Err(failure)
    }

    /// The member whose turn it is.
    async fn member(&self) -> Result<Member, Failure> {
        let mut member = self.member.lock().await;
        let turn = *self.turn.borrow();
        if let Some(open) = member.as_ref().filter(|open| open.turn == turn) {
            return Ok(open.clone());
        }
        *member = None;
        let opened = match timeout(self.options.request_timeout, self.open(turn)).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::NotDone(self.no_answer(turn))),
        };
        match opened {
            Ok(client) => {
                let opened = Member { client, turn };
                *member = Some(opened.clone());
                Ok(opened)
            }
            Err(failure) => {
                self.leave(turn);
                Err(match failure {
                    // Nothing that was asked for has been sent yet.
                    Failure::Unsure(why) => Failure::NotDone(why),
                    other => other,
                })
            }
        }
    }

    async fn open(&self, turn: u64) -> Result<Client, Failure> {
        let place = self.place(turn);
        let failed = |error: &etcd_client::Error| match classify(error, &place) {
            Failure::Unsure(why) => Failure::NotDone(format!("{why} ({})", self.advice())),
            failure => failure,
        };
        let client = Client::connect([place.url], Some(self.client_options.clone()))
            .await
            .map_err(|error| failed(&error))?;
        let status = client.maintenance_client().status().await;
        let status = status.map_err(|error| failed(&error))?;
        let denied = |why: String| Failure::Settled(StoreError::Denied(why));
        if parse_version(status.version()).is_some_and(|version| version < OLDEST_VERSION) {
            return Err(denied(format!(
                "the etcd at {} has version {}, and {}.{} or later is needed",
                place.url,
                status.version(),
                OLDEST_VERSION.0,
                OLDEST_VERSION.1
            )));
        }
        if status.leader() == 0 {
            return Err(Failure::NotDone(place.no_leader()));
        }
        let id = status.header().map_or(0, ResponseHeader::cluster_id);
        if *self.etcd.get_or_init(|| id) != id {
            return Err(denied(format!(
                "{} belongs to another etcd than the endpoint used before: etcd.endpoints must \
                 name members of one etcd",
                place.url
            )));
        }
        tracing::debug!(endpoint = place.url, "connected to etcd");
        Ok(client)
    }

    /// What may be wrong with a member that hangs up on the first request. One that misses
    /// the client's certificate only says so after the handshake, and often not at all.
    fn advice(&self) -> &'static str {
        match &self.options.tls {
            None => "check etcd.endpoints: an etcd with TLS needs https",
            Some(tls) if tls.identity.is_none() => {
                "if etcd asks clients for certificates, set etcd.tls.certificate and etcd.tls.key"
            }
            Some(_) => "check etcd.endpoints, etcd.tls.certificate and etcd.tls.key",
        }
    }

    fn no_answer(&self, turn: u64) -> String {
        format!(
            "no answer from etcd at {} within etcd.request.timeout.ms={}",
            self.place(turn).url,
            self.options.request_timeout.as_millis()
        )
    }
}

fn tls_options(tls: &EtcdTls) -> Result<TlsOptions, StoreError> {
    let ca = pem("etcd.tls.ca", &tls.ca)?;
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(
            pem("etcd.tls.certificate", certificate)?,
            pem("etcd.tls.key", key)?,
        ));
    }
    Ok(options)
}

/// What the file holds, which must at least look like PEM: the TLS library's own
/// complaint would not say which file it is about.
fn pem(setting: &str, path: &Path) -> Result<Vec<u8>, StoreError> {
    let denied =
        |why: &str| StoreError::Denied(format!("{setting}={path}: {why}", path = path.display()));
    let text = std::fs::read(path).map_err(|error| denied(&error.to_string()))?;
    if text.windows(11).any(|window| window == b"-----BEGIN ") {
        Ok(text)
    } else {
        Err(denied("it is not a PEM file"))
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (text, old_enough) in [("3.4.23", true), ("3.10.0", true), ("3.3.27", false)] {
            let version = parse_version(text).expect(text);
            assert_eq!(version >= OLDEST_VERSION, old_enough, "{text}");
        }
        assert_eq!(parse_version("latest"), None);
    }
}
