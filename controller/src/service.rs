//! The one loop of the control plane in a process: it keeps the image in step with the
//! store, registers the broker, competes for the seal and, while it holds that,
//! decides and commits.
//!
//! It owns everything here and does one thing at a time. It looks at how things stand
//! rather than at what happened ([`Service::next_task`]), so whatever is lost (an answer, a
//! session, the watch) is made good by looking again. Invariants: the image is changed by
//! the store alone; a decision is made only on an image that has every earlier one in
//! it; what is committed is guarded by the controller epoch (I5) and by the
//! revisions that the decision saw; a new controller reconciles before it decides
//! anything else (I11); callers are answered once their change is in the image.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    mem,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use yuxi_protocol::ids::ControllerEpoch;

use crate::{
    Campaign, ControllerError, ControllerOptions,
    command::Asked,
    decide::{brokers, configs, elections, topics::random_topic_id},
    election::{Candidate, Seal, Session},
    image::ClusterImage,
    keys::{ClusterValue, ConfigScope, Key, LAYOUT, print_value},
    liveness::{Liveness, Timing, is_in_line},
    metrics::ControllerMetrics,
    rebalance::RebalanceTimer,
    registration::{Registered, Registrant, Registration, holder},
    remote::Remote,
    store::{
        Batch, Commit, Guard, MetadataStore, Operation, Revision, SessionId, Snapshot, StoreError,
        Transaction, Watch, WatchEvent,
    },
    transactions::{is_applied, pack, pack_in_portions},
};

/// How long to wait before what failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How often one transaction is tried when its outcome is unknown or a guard failed.
const MAX_ATTEMPTS: u32 = 3;

/// When a broker that is not let in says so, first and then again.
const FIRST_REMINDER: Duration = Duration::from_secs(1);
const REMINDER: Duration = Duration::from_secs(10);

/// How long a loop that ends waits for the last call to the store.
const LAST_COMMIT: Duration = Duration::from_secs(2);

/// How many session TTLs a registration waits for an earlier one under its id to go.
const REGISTRATION_TTLS: u32 = 2;

/// What the handle sends.
pub(crate) enum Request {
    Command(Asked),
    Register(Registrant, Registered),
    /// Give up the seal and never hold it again; don't come back once fenced.
    Retire,
    Stop(oneshot::Sender<()>),
}

/// Reads the image, opens a session and starts the loop.
pub(crate) async fn start<S: MetadataStore>(
    store: S,
    options: ControllerOptions,
    requests: mpsc::Receiver<Request>,
    way_back: mpsc::WeakSender<Request>,
    metrics: Arc<ControllerMetrics>,
) -> Result<watch::Receiver<Arc<ClusterImage>>, ControllerError> {
    let (snapshot, batches) = read(store.clone()).await?;
    let image = ClusterImage::from_snapshot(&snapshot)?;
    let session = Session::open(&store, options.session_ttl).await?;
    let mut random = match options.seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::from_os_rng(),
    };
    let (image, receiver) = watch::channel(Arc::new(image));
    let candidate = Candidate {
        node_id: options.node_id,
        incarnation: format!("{:016x}", random.next_u64()),
        endpoint: options.endpoint.clone(),
    };
    let settings = Arc::clone(&options.settings);
    let service = Service {
        remote: Remote::new(
            candidate.node_id,
            candidate.incarnation.clone(),
            receiver.clone(),
            way_back,
        ),
        liveness: Liveness::new(candidate.node_id, Timing::of(&options.settings)),
        candidate,
        store,
        options,
        random,
        image,
        batches: Some(batches),
        session: Some(session),
        registration: None,
        to_revoke: VecDeque::new(),
        revoked: None,
        retired: false,
        outrun: None,
        requests,
        task: None,
        running: None,
        committed: Revision::ZERO,
        unseen: VecDeque::new(),
        reconciled: None,
        rebalance: RebalanceTimer::new(&settings),
        trouble: None,
        metrics,
    };
    tokio::spawn(service.run());
    Ok(receiver)
}

struct Service<S> {
    store: S,
    options: ControllerOptions,
    candidate: Candidate,
    /// Where commands go that this process may not decide.
    remote: Remote,
    /// Who of the others is alive.
    liveness: Liveness,
    /// Sessions of processes that are dead, to be ended.
    to_revoke: VecDeque<SessionId>,
    /// The last session that was ended for being a dead controller's.
    revoked: Option<SessionId>,
    /// Whether this process is on its way out.
    retired: bool,
    /// Somebody else was faster to the seal or this broker's id; the image has yet to say so.
    outrun: Option<Instant>,
    random: StdRng,
    image: watch::Sender<Arc<ClusterImage>>,
    /// `None` when the image has to be read anew.
    batches: Option<Watch>,
    /// `None` when a new one has to be opened.
    session: Option<Session>,
    registration: Option<Registration>,
    requests: mpsc::Receiver<Request>,
    /// What is being committed.
    task: Option<Task>,
    /// The one call to the store that is under way.
    running: Option<Running>,
    /// The last revision that this process committed.
    committed: Revision,
    /// Commands whose changes are committed, with the revision they are visible from.
    unseen: VecDeque<(Revision, Asked)>,
    /// The reign in which every partition was compared with the live brokers, as they
    /// still are.
    reconciled: Option<ControllerEpoch>,
    rebalance: RebalanceTimer,
    /// What went wrong last, and until when to let it rest.
    trouble: Option<(Instant, ControllerError)>,
    metrics: Arc<ControllerMetrics>,
}

type Running = Pin<Box<dyn Future<Output = Done> + Send>>;

/// How a call to the store ended.
enum Done {
    Read(Result<(Snapshot, Watch), StoreError>),
    Session(Result<Session, StoreError>),
    Revoked(Result<(), StoreError>),
    Commit(Result<Commit, StoreError>),
}

/// Everything that can happen to the loop.
enum Event {
    Done(Done),
    Batch(Option<Result<WatchEvent, StoreError>>),
    SessionKept,
    SessionLost,
    Liveness,
    Timer,
    Request(Option<Request>),
}

/// Transactions to commit one after the other.
struct Task {
    cause: Cause,
    transactions: VecDeque<Transaction>,
    applied: usize,
    attempts: u32,
    /// Whether the first of them may have been applied.
    in_doubt: bool,
}

enum Cause {
    Found,
    Register,
    Campaign,
    Resign,
    /// What every process must see alike is written down.
    Settle,
    Reconcile,
    Rebalance,
    Command(Asked),
}

impl<S: MetadataStore> Service<S> {
    async fn run(mut self) {
        self.watch_the_living(&ClusterImage::default());
        self.compare_min_isr(&ClusterImage::default(), &self.image.borrow());
        loop {
            self.answer_what_is_visible();
            self.start_what_is_due();
            let event = self.next_event().await;
            let begun = Instant::now();
            match event {
                Event::Done(done) => self.done(done),
                Event::Batch(event) => self.batch(event),
                Event::SessionKept => {}
                Event::SessionLost => self.session = None,
                Event::Liveness => {
                    if self.liveness.look(&self.metrics) {
                        self.reconciled = None;
                    }
                }
                Event::Timer => self.timer(),
                Event::Request(Some(Request::Command(asked))) => {
                    self.metrics.command_taken(asked.age());
                    self.decide(asked, 0);
                }
                Event::Request(Some(Request::Register(registrant, reply))) => {
                    self.register(registrant, reply);
                }
                Event::Request(Some(Request::Retire)) => self.retired = true,
                Event::Request(Some(Request::Stop(reply))) => {
                    self.end().await;
                    // Whoever asked may open the store next.
                    drop(self);
                    let _ = reply.send(());
                    return;
                }
                Event::Request(None) => return self.end().await,
            }
            self.metrics.event_handled(begun.elapsed());
        }
    }

    async fn next_event(&mut self) -> Event {
        let deadline = self.deadline();
        // A request is taken only when it can be decided on, or refused, at once.
        let ready = self.is_idle() || self.trouble.is_some();
        tokio::select! {
            biased;
            event = or_never(self.batches.as_mut().map(StreamExt::next)) => Event::Batch(event),
            done = or_never(self.running.as_mut()) => {
                self.running = None;
                Event::Done(done)
            }
            lost = or_never(self.session.as_mut().map(Session::changed)) => {
                if lost { Event::SessionLost } else { Event::SessionKept }
            }
            () = self.liveness.due() => Event::Liveness,
            () = or_never(deadline.map(sleep_until)) => Event::Timer,
            request = self.requests.recv(), if ready => Event::Request(request),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let registration = self.registration.as_ref();
        let waits = registration
            .filter(|registration| !registration.waiting.is_empty())
            .map(|registration| registration.give_up_at.min(registration.remind_at));
        let retry = self.trouble.as_ref().map(|(until, _)| *until);
        let rebalance = self.rebalance.deadline().filter(|_| self.is_idle());
        [waits, retry, self.outrun, rebalance]
            .into_iter()
            .flatten()
            .min()
    }

    fn timer(&mut self) {
        let now = Instant::now();
        if self
            .trouble
            .as_ref()
            .is_some_and(|(until, _)| *until <= now)
        {
            self.trouble = None;
        }
        if self.outrun.is_some_and(|until| until <= now) {
            // The image should have said by now who was.
            self.outrun = None;
            self.batches = None;
        }
        let node_id = self.options.node_id;
        let image = Arc::clone(&self.image.borrow());
        let taken = self.is_taken(&image);
        let Some(registration) = &mut self.registration else {
            return;
        };
        if registration.remind_at <= now && !registration.waiting.is_empty() {
            registration.remind_at = now + REMINDER;
            match image.controller() {
                _ if taken => tracing::info!(
                    node = %node_id,
                    "waiting for another process with this node.id to be gone"
                ),
                None => tracing::info!(
                    broker = %node_id,
                    "waiting for a controller: there is none, and this broker is no candidate or \
                     not yet one"
                ),
                Some(controller) => tracing::info!(
                    broker = %node_id,
                    controller = %controller.node_id,
                    "waiting for the controller to let this broker in"
                ),
            }
        }
        if registration.give_up_at <= now {
            let error = match &self.trouble {
                Some((_, error)) if !error.is_store_unavailable() => error.clone(),
                _ if taken => ControllerError::DuplicateBrokerRegistration(node_id.value()),
                // Sooner or later the store is back and a controller lets it in.
                _ => {
                    registration.give_up_at = now + self.options.session_ttl * REGISTRATION_TTLS;
                    return;
                }
            };
            for waiting in registration.waiting.drain(..) {
                let _ = waiting.send(Err(error.clone()));
            }
        }
    }

    /// Whether nothing is under way and the image has all that was committed.
    fn is_idle(&self) -> bool {
        self.task.is_none()
            && self.running.is_none()
            && self.batches.is_some()
            && self.image.borrow().revision() >= self.committed
    }

    fn start_what_is_due(&mut self) {
        if self.running.is_some() || self.trouble.is_some() {
            return;
        }
        let store = self.store.clone();
        if self.batches.is_none() {
            self.running = Some(Box::pin(async move { Done::Read(read(store).await) }));
            return;
        }
        self.leave_a_fenced_session();
        self.end_a_former_life();
        if self.session.is_none() {
            let ttl = self.options.session_ttl;
            self.running = Some(Box::pin(async move {
                Done::Session(Session::open(&store, ttl).await)
            }));
            return;
        }
        if self.is_idle() {
            self.task = self.next_task();
        }
        if self.task.is_none()
            && let Some(session) = self.to_revoke.pop_front()
        {
            self.running = Some(Box::pin(async move {
                Done::Revoked(store.close_session(session).await)
            }));
            return;
        }
        if let Some(task) = &self.task
            && let Some(transaction) = task.transactions.front().cloned()
        {
            self.running = Some(Box::pin(async move {
                Done::Commit(store.commit(transaction).await)
            }));
        }
    }

    /// What the image, as it stands, asks of this process.
    fn next_task(&mut self) -> Option<Task> {
        let image = Arc::clone(&self.image.borrow());
        let session = self.session.as_ref()?;
        if image.cluster_id().is_none() {
            let id = match &self.options.cluster_id {
                Some(id) => id.clone(),
                None => random_topic_id(&mut self.random).to_string(),
            };
            let found = found_cluster(&id);
            return Some(Task::new(Cause::Found, [found].into()));
        }
        if let Some(registration) = &self.registration
            && holder(&image, self.options.node_id).is_none()
            && !self.retired
            && self.outrun.is_none()
        {
            let node_id = self.options.node_id;
            let transaction = registration.registrant.transaction(node_id, session.id);
            return Some(Task::new(Cause::Register, [transaction].into()));
        }
        match self.candidate.seal(&image, session.id) {
            Seal::Free if self.campaigns(&image) && self.outrun.is_none() => {
                let transaction = self.candidate.campaign(session.id);
                Some(Task::new(Cause::Campaign, [transaction].into()))
            }
            Seal::Mine(epoch) if self.retired => {
                let transaction = Candidate::resign(epoch);
                Some(Task::new(Cause::Resign, [transaction].into()))
            }
            Seal::Stale(epoch) => {
                let transaction = Candidate::resign(epoch);
                Some(Task::new(Cause::Resign, [transaction].into()))
            }
            Seal::Mine(epoch) if self.reconciled != Some(epoch) && session.is_alive() => {
                if !self.options.is_alone {
                    let settling = configs::settle_min_isr(&image, &self.options.settings);
                    if !settling.is_empty() {
                        return Some(Task::new(Cause::Settle, pack(settling, epoch)));
                    }
                }
                let dead = self.liveness.dead_brokers(&image);
                let mut changes = brokers::remove_orphans(&image);
                let spared = self.liveness.spared();
                changes.extend(brokers::fence(
                    &image,
                    &self.options.settings,
                    &dead,
                    spared,
                ));
                let sessions = dead
                    .iter()
                    .filter_map(|&id| image.registration(id)?.session);
                self.to_revoke.extend(sessions);
                self.reconciled = Some(epoch);
                let transactions = pack(changes, epoch);
                if transactions.is_empty() {
                    self.has_reconciled();
                    return None;
                }
                Some(Task::new(Cause::Reconcile, transactions))
            }
            Seal::Mine(epoch) if session.is_alive() => self.rebalance(&image, epoch),
            Seal::Taken => {
                self.rebalance.stop();
                let dead = self.liveness.dead_controller(&image);
                if let Some(session) = dead.filter(|&session| self.revoked != Some(session)) {
                    tracing::warn!(%session, "the controller is dead: its session is ended");
                    self.revoked = Some(session);
                    self.to_revoke.push_back(session);
                }
                None
            }
            Seal::Mine(_) | Seal::Free => {
                self.rebalance.stop();
                None
            }
        }
    }

    /// Whether this process competes for the seal now.
    fn campaigns(&self, image: &ClusterImage) -> bool {
        let wants = match self.options.campaign {
            Campaign::OnceRegistered => self.registration.is_some() && !self.is_taken(image),
            Campaign::Never => false,
        };
        wants && !self.retired
    }

    /// Whether another process, or another life of this one, has this one's number.
    fn is_taken(&self, image: &ClusterImage) -> bool {
        let mine = self.registration.as_ref();
        let mine = mine.map(|registration| registration.registrant.incarnation());
        let holder = holder(image, self.options.node_id);
        holder.is_some_and(|holder| Some(holder.incarnation) != mine)
    }

    /// A registration that is gone while the session seems to live was fenced, and the
    /// session is about to be ended: registering in it again would not last.
    fn leave_a_fenced_session(&mut self) {
        let image = Arc::clone(&self.image.borrow());
        let (Some(session), Some(registration)) = (&self.session, &self.registration) else {
            return;
        };
        let holds_seal = matches!(self.candidate.seal(&image, session.id), Seal::Mine(_));
        if registration.session == Some(session.id)
            && holder(&image, self.options.node_id).is_none()
            && !holds_seal
            && !self.retired
        {
            tracing::warn!("this process was fenced and registers again");
            self.to_revoke.push_back(session.id);
            self.session = None;
        }
    }

    /// An earlier process on this broker's own data directory is surely gone, since this
    /// one has locked the directory on the same, still running, machine.
    fn end_a_former_life(&mut self) {
        let image = Arc::clone(&self.image.borrow());
        let Some(registration) = self.registration.as_ref().filter(|r| r.session.is_none()) else {
            return;
        };
        let Registrant::Broker(mine) = &registration.registrant else {
            return;
        };
        let former = image.registration(self.options.node_id).filter(|broker| {
            let other = &broker.registration;
            other.incarnation != mine.incarnation
                && !mine.boot_id.is_empty()
                && other.boot_id == mine.boot_id
                && !mine.directories.is_empty()
                && other.directories == mine.directories
        });
        let session = former.and_then(|broker| broker.session);
        if let Some(session) = session.filter(|&session| self.revoked != Some(session)) {
            tracing::info!("the registration of this broker's last process is ended");
            self.revoked = Some(session);
            self.to_revoke.push_back(session);
        }
    }

    fn rebalance(&mut self, image: &ClusterImage, epoch: ControllerEpoch) -> Option<Task> {
        let now = Instant::now();
        if !self.rebalance.is_due(now) {
            return None;
        }
        let (changes, more) = elections::rebalance(image, &self.options.settings);
        self.rebalance.looked(now, more);
        let transactions = pack_in_portions(changes, epoch);
        (!transactions.is_empty()).then(|| Task::new(Cause::Rebalance, transactions))
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Read(Ok((snapshot, batches))) => self.read_anew(&snapshot, batches),
            Done::Session(Ok(session)) => self.session = Some(session),
            Done::Revoked(Ok(())) => {}
            Done::Revoked(Err(error)) => {
                // It ends by itself later, unless it is ended first.
                self.revoked = None;
                self.rest(error.into());
            }
            Done::Read(Err(error)) | Done::Session(Err(error)) => self.rest(error.into()),
            Done::Commit(outcome) => {
                if let Some(task) = self.task.take() {
                    self.task_done(task, outcome);
                }
            }
        }
    }

    fn task_done(&mut self, mut task: Task, outcome: Result<Commit, StoreError>) {
        match outcome {
            Ok(Commit::Applied(revision)) => self.applied(task, revision),
            Ok(Commit::Refused) if matches!(task.cause, Cause::Campaign | Cause::Register) => {
                self.outrun = Some(Instant::now() + RETRY_DELAY);
            }
            Ok(Commit::Refused) => {
                // Something is not as the image has it.
                self.batches = None;
                task.attempts += 1;
                if task.applied == 0 && task.attempts < MAX_ATTEMPTS {
                    task.transactions.clear();
                    self.task = Some(task);
                } else {
                    self.failed(task, ControllerError::NotController);
                }
            }
            Err(error @ StoreError::Unknown(_)) => {
                tracing::warn!(%error, "reading back what became of a metadata commit");
                self.batches = None;
                task.attempts += 1;
                if task.attempts < MAX_ATTEMPTS {
                    task.in_doubt = true;
                    self.task = Some(task);
                } else {
                    self.failed(task, error.clone().into());
                    self.rest(error.into());
                }
            }
            Err(StoreError::SessionLost) => {
                self.session = None;
                self.failed(task, ControllerError::NotController);
            }
            Err(error) => {
                self.failed(task, error.clone().into());
                if !matches!(error, StoreError::TooLarge { .. }) {
                    self.rest(error.into());
                }
            }
        }
    }

    fn applied(&mut self, mut task: Task, revision: Revision) {
        self.committed = self.committed.max(revision);
        task.transactions.pop_front();
        task.applied += 1;
        task.attempts = 0;
        task.in_doubt = false;
        if !task.transactions.is_empty() {
            self.task = Some(task);
            return;
        }
        match task.cause {
            Cause::Command(asked) => self.unseen.push_back((revision, asked)),
            Cause::Reconcile => self.has_reconciled(),
            Cause::Found
            | Cause::Register
            | Cause::Campaign
            | Cause::Resign
            | Cause::Settle
            | Cause::Rebalance => {}
        }
    }

    fn has_reconciled(&self) {
        if let Some(epoch) = self.reconciled {
            tracing::info!(%epoch, "this controller has reconciled every partition");
        }
    }

    fn failed(&mut self, task: Task, error: ControllerError) {
        match task.cause {
            Cause::Command(asked) => asked.finish(Err(error)),
            Cause::Reconcile => self.reconciled = None,
            // The image still asks for these, or will when it is next looked at.
            Cause::Found
            | Cause::Register
            | Cause::Campaign
            | Cause::Resign
            | Cause::Settle
            | Cause::Rebalance => {}
        }
    }

    /// Lets the store rest after an error; until then requests are refused with it.
    fn rest(&mut self, error: ControllerError) {
        tracing::error!(%error, "the metadata store failed");
        self.metrics.store_failed();
        self.trouble = Some((Instant::now() + RETRY_DELAY, error));
    }

    fn read_anew(&mut self, snapshot: &Snapshot, batches: Watch) {
        let image = match ClusterImage::from_snapshot(snapshot)
            .map_err(ControllerError::from)
            .and_then(|image| self.of_this_cluster(image))
        {
            Ok(image) => image,
            Err(error) => return self.rest(error),
        };
        self.batches = Some(batches);
        // A store that was put back from a backup may be behind what it once said.
        self.committed = self.committed.min(snapshot.revision);
        self.publish(image);
        let Some(mut task) = self.task.take() else {
            return;
        };
        if !task.in_doubt {
            // It was refused; the image says what to do instead.
            match task.cause {
                Cause::Command(asked) => self.decide(asked, task.attempts),
                Cause::Reconcile => self.reconciled = None,
                Cause::Found
                | Cause::Register
                | Cause::Campaign
                | Cause::Resign
                | Cause::Settle
                | Cause::Rebalance => {}
            }
            return;
        }
        task.in_doubt = false;
        let first = task.transactions.front();
        if first.is_some_and(|transaction| is_applied(transaction, snapshot)) {
            self.applied(task, snapshot.revision);
        } else {
            // Should it still come through, its guards stop the second.
            self.task = Some(task);
        }
    }

    fn batch(&mut self, event: Option<Result<WatchEvent, StoreError>>) {
        match event {
            Some(Ok(WatchEvent::Batch(batch))) => self.advance(&batch),
            Some(Ok(WatchEvent::Compacted)) | None => self.batches = None,
            Some(Err(error)) => {
                self.batches = None;
                self.rest(error.into());
            }
        }
    }

    fn advance(&mut self, batch: &Batch) {
        let image = Arc::clone(&self.image.borrow());
        if batch.revision <= image.revision() {
            return;
        }
        match image
            .advanced_by(batch)
            .map_err(ControllerError::from)
            .and_then(|image| self.of_this_cluster(image))
        {
            Ok(next) => self.publish(next),
            Err(error) => {
                self.batches = None;
                self.rest(error);
            }
        }
    }

    /// Refuses an image of another cluster, or of none: in a store that was emptied, every
    /// topic would seem to be deleted.
    fn of_this_cluster(&self, image: ClusterImage) -> Result<ClusterImage, ControllerError> {
        let known = self.image.borrow().cluster_id().cloned();
        match known {
            Some(known) if image.cluster_id() != Some(&known) => {
                let why = format!("it no longer holds cluster {known}: put its data back");
                Err(StoreError::Damaged(why).into())
            }
            _ => Ok(image),
        }
    }

    fn publish(&mut self, image: ClusterImage) {
        let old = self.image.send_replace(Arc::new(image));
        self.outrun = None;
        self.watch_the_living(&old);
        let new = Arc::clone(&self.image.borrow());
        let reign = |image: &ClusterImage| image.controller().map(|holder| holder.epoch);
        if reign(&new).is_some() && reign(&new) != reign(&old) {
            self.metrics.reign_began();
        }
        let mine = new.controller().map(|holder| &holder.incarnation);
        if mine == Some(&self.candidate.incarnation) {
            self.metrics.decided(&old, &new);
        }
        self.compare_min_isr(&old, &new);
        if brokers::asks_for_reconciling(&old, &new) {
            self.reconciled = None;
        }
    }

    /// Says so where what this process was started with is not what holds in the cluster.
    fn compare_min_isr(&self, old: &ClusterImage, new: &ClusterImage) {
        let of = |image: &ClusterImage| {
            let value = image.config_value(&ConfigScope::Cluster, configs::MIN_ISR);
            value.map(ToOwned::to_owned)
        };
        let given = self.options.settings.min_insync_replicas.to_string();
        if let Some(cluster) = of(new)
            && cluster != given
            && of(old).as_ref() != Some(&cluster)
            && !self.options.is_alone
        {
            tracing::warn!(
                %cluster,
                %given,
                "the min.insync.replicas that this process was started with is not the cluster's, \
                 which holds: it is changed as a default of all brokers, in one place"
            );
        }
    }

    /// Watches whom the image names, if it is this process's turn to do so.
    fn watch_the_living(&mut self, old: &ClusterImage) {
        let image = Arc::clone(&self.image.borrow());
        let candidate = &self.candidate;
        let watches =
            self.campaigns(&image) && is_in_line(&image, candidate.node_id, &candidate.incarnation);
        self.liveness.follow(old, &image, watches, &self.metrics);
    }

    fn answer_what_is_visible(&mut self) {
        let image = Arc::clone(&self.image.borrow());
        while let Some((revision, asked)) = self
            .unseen
            .pop_front_if(|(revision, _)| *revision <= image.revision())
        {
            asked.finish(Ok(revision));
        }
        let Some(registration) = &mut self.registration else {
            return;
        };
        let registered = holder(&image, self.options.node_id)
            .filter(|holder| holder.incarnation == registration.registrant.incarnation());
        if let Some(holder) = registered {
            registration.session = holder.session;
        }
        if let Some(epoch) = registered.and_then(|holder| holder.admitted) {
            for waiting in registration.waiting.drain(..) {
                let _ = waiting.send(Ok(epoch));
            }
        }
    }

    fn decide(&mut self, mut asked: Asked, attempts: u32) {
        let image = Arc::clone(&self.image.borrow());
        let session = self.session.as_ref().filter(|session| session.is_alive());
        let seal = session.map(|session| self.candidate.seal(&image, session.id));
        let Some(Seal::Mine(epoch)) = seal else {
            return self.pass_on(asked);
        };
        if let Some((_, error)) = &self.trouble {
            return asked.finish(Err(error.clone()));
        }
        if let Err(error) = asked.check_sender(&image) {
            return asked.finish(Err(error));
        }
        let settings = &self.options.settings;
        let changes = asked.command.decide(&image, settings, &mut self.random);
        let transactions = if asked.command.moves_leaders() {
            pack_in_portions(changes, epoch)
        } else {
            pack(changes, epoch)
        };
        if transactions.is_empty() {
            return asked.finish(Ok(image.revision()));
        }
        self.task = Some(Task {
            attempts,
            ..Task::new(Cause::Command(asked), transactions)
        });
    }

    /// Has another process decide, unless this one was asked by another already.
    fn pass_on(&mut self, asked: Asked) {
        if asked.sender.is_some() {
            return asked.finish(Err(ControllerError::NotController));
        }
        let registration = self.registration.as_ref();
        let registered =
            registration.map(|registration| registration.registrant.incarnation().to_owned());
        self.remote.forward(asked, registered);
    }

    fn register(&mut self, registrant: Registrant, reply: Registered) {
        let give_up_at = Instant::now() + self.options.session_ttl * REGISTRATION_TTLS;
        let mut waiting = self
            .registration
            .take()
            .map_or(Vec::new(), |old| old.waiting);
        waiting.push(reply);
        self.registration = Some(Registration {
            registrant,
            waiting,
            give_up_at,
            remind_at: Instant::now() + FIRST_REMINDER,
            session: None,
        });
    }

    async fn end(&mut self) {
        for (_, asked) in mem::take(&mut self.unseen) {
            asked.finish(Err(ControllerError::Stopped));
        }
        if let Some(running) = self.running.take() {
            // A commit that is under way holds the store.
            let _ = timeout(LAST_COMMIT, running).await;
        }
        if let Some(session) = self.session.take() {
            let session = session.let_go().await;
            if let Err(error) = self.store.close_session(session).await {
                tracing::warn!(%error, "the metadata session was left to expire");
            }
        }
    }
}

impl Task {
    fn new(cause: Cause, transactions: VecDeque<Transaction>) -> Self {
        Self {
            cause,
            transactions,
            applied: 0,
            attempts: 0,
            in_doubt: false,
        }
    }
}

/// Reads everything, and watches from there on.
async fn read(store: impl MetadataStore) -> Result<(Snapshot, Watch), StoreError> {
    let snapshot = store.read("").await?;
    let batches = store.watch("", snapshot.revision).await?;
    Ok((snapshot, batches))
}

fn found_cluster(cluster_id: &str) -> Transaction {
    let key = Key::Cluster.to_string();
    Transaction {
        guards: vec![Guard::Absent(key.clone())],
        operations: vec![Operation::Put {
            key,
            value: print_value(&ClusterValue {
                cluster_id: cluster_id.to_owned(),
                layout: LAYOUT,
            }),
            session: None,
        }],
    }
}

async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
