//! Who is alive, found out faster than sessions end: the controller and the candidates next
//! in line keep a connection to every broker and send a small request on it at intervals.
//!
//! A broker that was reached and whose port then refuses connections is gone; one that is
//! silent for too long counts as gone. Being wrong costs a leader epoch, never data, since
//! whoever is taken for dead is fenced by the epochs. Guards: a process that itself
//! stood still, or that hears nobody at all, blames nobody for silence; when many are
//! silent at once each is asked again on a new connection; when many registrations expire
//! at once those brokers that still answer are given time to come back (an etcd that
//! stalled expires healthy sessions: etcd #15247). [`Monitor`] is the pure part: what
//! was heard and the time in, verdicts out. [`Liveness`] owns it and the probes.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use yuxi_protocol::{
    codec::{ApiVersion, StrBytes},
    ids::BrokerId,
    messages::{ApiVersionsRequest, OutboundFrameLimits, encode_request},
};

use crate::{
    image::{BrokerImage, ClusterImage},
    keys::Address,
    metrics::ControllerMetrics,
    remote::read_frame,
    settings::ServerSettings,
    store::SessionId,
};

/// How many candidates besides the controller keep connections: not all, that would be N².
const NEXT_IN_LINE: usize = 2;

/// A registration that vanishes while its broker answers may be the first of many.
const SETTLING: Duration = Duration::from_millis(100);

/// How many heartbeat time-outs a broker that answers has for registering again after
/// many registrations vanished at once.
const GRACE_TIMEOUTS: u32 = 3;

/// How soon a process is asked again that closed the connection without an answer, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// A little later than something is due, it is surely past.
const PAST: Duration = Duration::from_millis(1);

/// The largest answer to a probe.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The heartbeat settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Timing {
    pub(crate) fn of(settings: &ServerSettings) -> Self {
        let millis = |setting: i32| Duration::from_millis(setting.unsigned_abs().into());
        Self {
            interval: millis(settings.broker_heartbeat_interval_ms),
            timeout: millis(settings.broker_heartbeat_timeout_ms),
        }
    }
}

/// One life of a process that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Life {
    /// A broker, with its broker epoch.
    Broker(BrokerId, i64),
    /// A controller that is no broker, with its controller epoch.
    Controller(i64),
}

/// What is known of one life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observation {
    /// When it last answered.
    pub(crate) heard: Option<Instant>,
    /// It was reached, and then its port refused a connection.
    pub(crate) refused: bool,
}

impl Observation {
    /// An answer came.
    fn answered(&mut self, now: Instant) {
        *self = Self {
            heard: Some(now),
            refused: false,
        };
    }

    /// The port refused a connection; whether that is news. Of a process that was never
    /// reached it says nothing: the address may be wrong as seen from here.
    fn turned_away(&mut self) -> bool {
        let is_news = self.heard.is_some() && !self.refused;
        self.refused |= is_news;
        is_news
    }
}

/// What follows from the observations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Gone, or to be treated so.
    pub(crate) dead: BTreeSet<Life>,
    /// To be asked on a new connection.
    pub(crate) ask_again: BTreeSet<Life>,
}

/// Judges observations; see the module.
pub(crate) struct Monitor {
    timing: Timing,
    /// When the next look is due.
    due: Option<Instant>,
    /// Silence from before is not held against anybody.
    amnesty: Option<Instant>,
    /// Lives that are asked again, since when.
    doubted: BTreeMap<Life, Instant>,
}

impl Monitor {
    pub(crate) fn new(timing: Timing) -> Self {
        Self {
            timing,
            due: None,
            amnesty: None,
            doubted: BTreeMap::new(),
        }
    }

    /// Judges what was observed until `now`. To be called again when [`Monitor::due`] says,
    /// or earlier.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        observed: &BTreeMap<Life, Observation>,
    ) -> Verdicts {
        let stood_still = self
            .due
            .is_some_and(|due| now.saturating_duration_since(due) > self.timing.timeout / 2);
        if stood_still {
            self.amnesty = Some(now);
        }
        let verdicts = self.judge(now, observed);
        self.due = Some(self.next_change(now, observed));
        verdicts
    }

    /// When to look again: when silence has first lasted too long.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn next_change(&self, now: Instant, observed: &BTreeMap<Life, Observation>) -> Instant {
        let timeout = self.timing.timeout;
        let silences = observed.values().filter(|seen| !seen.refused);
        let silences = silences.filter_map(|seen| Some(self.silent_since(seen)? + timeout));
        let doubts = self.doubted.values().map(|&since| since + timeout / 2);
        let changes = silences.chain(doubts).map(|at| at + PAST);
        changes
            .filter(|&at| at > now)
            .fold(now + timeout / 2, Instant::min)
    }

    fn judge(&mut self, now: Instant, observed: &BTreeMap<Life, Observation>) -> Verdicts {
        let refused: BTreeSet<Life> = observed
            .iter()
            .filter(|(_, seen)| seen.refused)
            .map(|(&life, _)| life)
            .collect();
        let silent: BTreeSet<Life> = observed
            .iter()
            .filter(|(_, seen)| !seen.refused && self.is_silent(seen, now))
            .map(|(&life, _)| life)
            .collect();
        self.doubted.retain(|life, _| silent.contains(life));
        let mut verdicts = Verdicts {
            dead: refused.clone(),
            ask_again: BTreeSet::new(),
        };
        let hears_nobody = observed.len() > 1 && refused.len() + silent.len() == observed.len();
        if hears_nobody {
            return verdicts;
        }
        if !is_many(silent.len(), observed.len()) && self.doubted.is_empty() {
            verdicts.dead.extend(silent);
            return verdicts;
        }
        for life in silent {
            match self.doubted.get(&life) {
                None => {
                    self.doubted.insert(life, now);
                    verdicts.ask_again.insert(life);
                }
                Some(&since) if now - since >= self.timing.timeout / 2 => {
                    verdicts.dead.insert(life);
                }
                Some(_) => {}
            }
        }
        verdicts
    }

    fn is_silent(&self, seen: &Observation, now: Instant) -> bool {
        self.silent_since(seen)
            .is_some_and(|since| now - since > self.timing.timeout)
    }

    /// Since when its silence counts. Whoever was never heard may not be reachable from here
    /// at all.
    fn silent_since(&self, seen: &Observation) -> Option<Instant> {
        seen.heard
            .map(|heard| heard.max(self.amnesty.unwrap_or(heard)))
    }

    /// Whether a process was heard and is not silent.
    fn answers(&self, seen: &Observation, now: Instant) -> bool {
        !seen.refused && seen.heard.is_some() && !self.is_silent(seen, now)
    }
}

/// Two or more, and more than a third.
fn is_many(some: usize, all: usize) -> bool {
    some >= 2 && some * 3 > all
}

/// Registrations that are no longer there.
#[derive(Default)]
pub(crate) struct Vanished {
    brokers: BTreeMap<BrokerId, (BrokerImage, Instant)>,
}

impl Vanished {
    fn follow(&mut self, old: &ClusterImage, new: &ClusterImage, now: Instant, grace: Duration) {
        self.brokers
            .retain(|&id, (_, since)| new.registration(id).is_none() && now - *since < 2 * grace);
        let leaving = |id| {
            old.admission(id)
                .is_none_or(|admission| admission.value.shutting_down)
        };
        for broker in old.registrations() {
            if new.registration(broker.id).is_none() && !leaving(broker.id) {
                self.brokers.insert(broker.id, (broker.clone(), now));
            }
        }
    }

    /// The brokers that are treated as if they were still registered: they answer, and
    /// the rest of the world looks as if the store had lost its sessions.
    fn spared(
        &self,
        registered: usize,
        now: Instant,
        grace: Duration,
        answers: impl Fn(&BrokerImage) -> bool,
    ) -> Vec<BrokerImage> {
        let since = |within| {
            let brokers = self.brokers.values();
            brokers.filter(move |(_, since)| now - *since < within)
        };
        let gone = since(2 * grace).count();
        let patience = if is_many(gone, gone + registered) {
            grace
        } else {
            SETTLING
        };
        since(patience)
            .filter(|(broker, _)| answers(broker))
            .map(|(broker, _)| broker.clone())
            .collect()
    }
}

/// Watches the processes of the cluster on behalf of one of them.
pub(crate) struct Liveness {
    timing: Timing,
    node_id: BrokerId,
    monitor: Monitor,
    vanished: Vanished,
    /// How many brokers are registered.
    registered: usize,
    probes: BTreeMap<Life, Probe>,
    /// All probes ask at the same moments, counted from here: each wakes the process, and so
    /// do the answers.
    origin: Instant,
    /// A probe has found a process gone.
    found: Arc<Notify>,
    next_look: Instant,
    dead: BTreeSet<Life>,
    spared: Vec<BrokerImage>,
}

impl Liveness {
    pub(crate) fn new(node_id: BrokerId, timing: Timing) -> Self {
        Self {
            timing,
            node_id,
            monitor: Monitor::new(timing),
            vanished: Vanished::default(),
            registered: 0,
            probes: BTreeMap::new(),
            origin: Instant::now(),
            found: Arc::new(Notify::new()),
            next_look: Instant::now(),
            dead: BTreeSet::new(),
            spared: Vec::new(),
        }
    }

    /// Watches the processes that `new` names, if it is this process's turn to watch, and
    /// judges them anew, as [`Liveness::look`] does.
    #[must_use]
    pub(crate) fn follow(
        &mut self,
        old: &ClusterImage,
        new: &ClusterImage,
        watches: bool,
        metrics: &ControllerMetrics,
    ) -> bool {
        if !watches {
            self.probes.clear();
            self.dead.clear();
            self.spared.clear();
            self.vanished = Vanished::default();
            return false;
        }
        let now = Instant::now();
        self.registered = new.registrations().count();
        self.vanished.follow(old, new, now, self.grace());
        let mut targets = targets(new, self.node_id);
        for (broker, _) in self.vanished.brokers.values() {
            if let Some(target) = target(broker) {
                targets.insert(target.0, target.1);
            }
        }
        self.probes.retain(|life, _| targets.contains_key(life));
        for (life, address) in targets {
            let (timing, origin) = (self.timing, self.origin);
            self.probes
                .entry(life)
                .or_insert_with(|| Probe::start(address, timing, origin, Arc::clone(&self.found)));
        }
        self.look(metrics)
    }

    /// Waits until it is time to [`Liveness::look`].
    pub(crate) async fn due(&self) {
        if self.probes.is_empty() {
            return pending().await;
        }
        tokio::select! {
            () = self.found.notified() => {}
            () = sleep_until(self.next_look) => {}
        }
    }

    /// Judges anew; whether anything is different from the last time. That is said once: who
    /// does not act on it forgets a death.
    #[must_use]
    pub(crate) fn look(&mut self, metrics: &ControllerMetrics) -> bool {
        let now = Instant::now();
        let observed: BTreeMap<Life, Observation> = self
            .probes
            .iter()
            .map(|(&life, probe)| (life, *probe.seen()))
            .collect();
        let verdicts = self.monitor.look(now, &observed);
        let often = now + self.timing.interval / 2;
        self.next_look = match self.monitor.due() {
            Some(due) if self.vanished.brokers.is_empty() => due,
            Some(due) => due.min(often),
            None => often,
        };
        for life in &verdicts.ask_again {
            if let Some(probe) = self.probes.get(life) {
                probe.again.notify_one();
            }
        }
        for life in verdicts.dead.difference(&self.dead) {
            let refused = observed.get(life).is_some_and(|seen| seen.refused);
            tracing::warn!(?life, refused, "a process is taken for dead");
            metrics.taken_for_dead();
        }
        let answers = |broker: &BrokerImage| {
            let seen = observed.get(&life_of(broker));
            seen.is_some_and(|seen| self.monitor.answers(seen, now))
        };
        let spared = self
            .vanished
            .spared(self.registered, now, self.grace(), answers);
        let changed = spared != self.spared || verdicts.dead != self.dead;
        if spared.len() > self.spared.len() {
            tracing::warn!(
                brokers = spared.len(),
                "registrations are gone, but their brokers answer: waiting for them to return"
            );
        }
        self.spared = spared;
        self.dead = verdicts.dead;
        changed
    }

    /// Brokers that are registered and dead.
    pub(crate) fn dead_brokers(&self, image: &ClusterImage) -> Vec<BrokerId> {
        image
            .registrations()
            .filter(|broker| self.dead.contains(&life_of(broker)))
            .map(|broker| broker.id)
            .collect()
    }

    /// Brokers whose registration is gone and that are treated as if it were not.
    pub(crate) fn spared(&self) -> &[BrokerImage] {
        &self.spared
    }

    /// The session of the controller, if that process is dead.
    pub(crate) fn dead_controller(&self, image: &ClusterImage) -> Option<SessionId> {
        let controller = image.controller()?;
        let is_dead = match registered_controller(image) {
            Some(broker) => self.dead.contains(&life_of(broker)),
            None => self
                .dead
                .contains(&Life::Controller(controller.epoch.value())),
        };
        controller.session.filter(|_| is_dead)
    }

    fn grace(&self) -> Duration {
        self.timing.timeout * GRACE_TIMEOUTS
    }
}

/// Whether a candidate is the controller or one of those next in line to be. Candidates
/// that are no brokers are few, and always in line.
pub(crate) fn is_in_line(image: &ClusterImage, node_id: BrokerId, incarnation: &str) -> bool {
    let holder = image.controller();
    if holder.is_some_and(|holder| holder.incarnation == incarnation) {
        return true;
    }
    let Some(registered) = image.registration(node_id) else {
        return true;
    };
    if !registered.registration.candidate {
        return false;
    }
    let holder = holder.map(|holder| holder.node_id);
    image
        .registrations()
        .filter(|broker| broker.registration.candidate && Some(broker.id) != holder)
        .take(NEXT_IN_LINE)
        .any(|broker| broker.id == node_id)
}

fn targets(image: &ClusterImage, node_id: BrokerId) -> BTreeMap<Life, Address> {
    let mut targets: BTreeMap<Life, Address> = image
        .registrations()
        .filter(|broker| broker.id != node_id)
        .filter_map(target)
        .collect();
    if let Some(controller) = image.controller()
        && registered_controller(image).is_none()
        && controller.node_id != node_id
        && let Some(address) = &controller.endpoint
    {
        targets.insert(Life::Controller(controller.epoch.value()), address.clone());
    }
    targets
}

fn target(broker: &BrokerImage) -> Option<(Life, Address)> {
    let endpoint = broker.registration.endpoints.first()?;
    let address = Address {
        host: endpoint.host.clone(),
        port: endpoint.port,
    };
    Some((life_of(broker), address))
}

fn life_of(broker: &BrokerImage) -> Life {
    Life::Broker(broker.id, broker.epoch.value())
}

/// The registration of the process that is the controller, if it is a broker too.
fn registered_controller(image: &ClusterImage) -> Option<&BrokerImage> {
    let controller = image.controller()?;
    image
        .registration(controller.node_id)
        .filter(|broker| broker.session.is_some() && broker.session == controller.session)
}

/// The connection to one process, and the task that keeps it until this is dropped.
struct Probe {
    seen: Arc<Mutex<Observation>>,
    /// Asks it on a new connection.
    again: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probe {
    fn start(address: Address, timing: Timing, origin: Instant, found: Arc<Notify>) -> Self {
        let seen = Arc::new(Mutex::new(Observation::default()));
        let again = Arc::new(Notify::new());
        let watching = Watching {
            address,
            timing,
            origin,
            seen: Arc::clone(&seen),
            again: Arc::clone(&again),
            found,
        };
        Self {
            seen,
            again,
            task: tokio::spawn(watching.run()).abort_handle(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Observation> {
        lock(&self.seen)
    }
}

fn lock(seen: &Mutex<Observation>) -> MutexGuard<'_, Observation> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the task of a [`Probe`] works with.
struct Watching {
    address: Address,
    timing: Timing,
    origin: Instant,
    seen: Arc<Mutex<Observation>>,
    again: Arc<Notify>,
    found: Arc<Notify>,
}

impl Watching {
    async fn run(self) {
        let Some(request) = probe_request() else {
            return;
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let connecting = TcpStream::connect((self.address.host.as_str(), self.address.port));
            match timeout(self.timing.timeout, connecting).await {
                Ok(Ok(stream)) => {
                    let answered = tokio::select! {
                        answered = self.ask(stream, &request) => answered,
                        () = self.again.notified() => true,
                    };
                    if answered {
                        pause = FIRST_PAUSE;
                        continue;
                    }
                }
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    self.refused();
                    sleep(self.timing.interval).await;
                    continue;
                }
                Ok(Err(_)) => {}
                Err(_) => continue,
            }
            // It accepts, and closes or says nothing, or resets the connection: perhaps a process
            // that is being ended, whose connections the system closes before its port.
            sleep(pause).await;
            pause = (pause * 2).min(self.timing.interval);
        }
    }

    /// Asks at intervals until the connection ends or an answer takes too long; whether
    /// there was any.
    async fn ask(&self, mut stream: TcpStream, request: &Bytes) -> bool {
        let _ = stream.set_nodelay(true);
        let mut buffer = BytesMut::new();
        let mut answered = false;
        loop {
            let asked = async {
                stream.write_all(request).await?;
                read_frame(&mut stream, &mut buffer, MAX_ANSWER_BYTES).await
            };
            match timeout(self.timing.timeout, asked).await {
                Ok(Ok(_)) => self.heard(),
                Ok(Err(_)) | Err(_) => return answered,
            }
            answered = true;
            // Nothing is owed now, so what comes, or the end, is news.
            let news = read_frame(&mut stream, &mut buffer, MAX_ANSWER_BYTES);
            if timeout_at(self.next_moment(), news).await.is_ok() {
                return true;
            }
        }
    }

    /// When all probes ask next.
    fn next_moment(&self) -> Instant {
        let interval = self.timing.interval.max(PAST);
        let passed = self.origin.elapsed().as_nanos() / interval.as_nanos();
        self.origin + interval * u32::try_from(passed + 1).unwrap_or(u32::MAX)
    }

    fn heard(&self) {
        lock(&self.seen).answered(Instant::now());
    }

    fn refused(&self) {
        if lock(&self.seen).turned_away() {
            self.found.notify_one();
        }
    }
}

fn probe_request() -> Option<Bytes> {
    let mut frame = BytesMut::new();
    let encoded = encode_request(
        &mut frame,
        0,
        Some(StrBytes::from("yuxi-liveness")),
        &ApiVersionsRequest::default(),
        ApiVersion::new(0),
        OutboundFrameLimits::new(MAX_ANSWER_BYTES),
    );
    match encoded {
        Ok(_) => Some(frame.freeze()),
        Err(error) => {
            tracing::error!(%error, "no process can be watched");
            None
        }
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
