//! The one loop of the control plane in a process: it keeps the image in step with the
//! store, registers the broker, competes for the seal and, while it holds that,
//! decides and commits.
//!
//! It owns its parts ([`following`], [`reign`], [`endings`], [`notices`], the registration, the liveness of
//! the others) and does one thing at a time. It looks at how things stand
//! rather than at what happened ([`Service::next_task`]), so whatever is lost (an answer, a
//! session, the watch) is made good by looking again. Invariants: a decision is made only on
//! an image that has every earlier one in
//! it; what is committed is guarded by the controller epoch (I5) and by the
//! revisions that the decision saw; a new controller reconciles before it decides
//! anything else (I11); callers are answered once their change is in the image.

mod endings;
mod following;
mod notices;
mod reign;
mod task;

use std::{
    collections::VecDeque,
    future::{Future, pending},
    mem,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Campaign, ControllerError, ControllerOptions,
    command::Asked,
    complaints::Complaints,
    decide::{brokers, topics::random_topic_id},
    election::{Candidate, Seal, Session},
    image::ClusterImage,
    keys::{ClusterValue, Key, LAYOUT, print_value},
    liveness::{Liveness, Timing, is_in_line},
    metrics::ControllerMetrics,
    registration::{OwnRegistration, Registered, Registrant},
    remote::Remote,
    store::{
        Commit, Guard, MetadataStore, Operation, Revision, Snapshot, StoreError, Transaction,
        Watch, WatchEvent,
    },
    transactions::{is_applied, pack, pack_in_portions},
};
use endings::Endings;
use following::{Following, read};
use notices::Notices;
use reign::Reign;
use task::{Cause, Task};

/// How long to wait before what failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How often one transaction is tried when its outcome is unknown or a guard failed.
const MAX_ATTEMPTS: u32 = 3;

/// How long a loop that ends waits for the last call to the store.
const LAST_COMMIT: Duration = Duration::from_secs(2);

/// What the handle sends.
pub(crate) enum Request {
    Command(Asked),
    Register(Registrant, Registered),
    /// Give up the seal and never hold it again; don't come back once fenced.
    Retire,
    Stop(oneshot::Sender<()>),
}

/// What comes of a start: the images, and why the store will never hold a cluster.
type Starting = (
    watch::Receiver<Arc<ClusterImage>>,
    oneshot::Receiver<ControllerError>,
);

/// Reads the image, opens a session and starts the loop.
pub(crate) async fn start<S: MetadataStore>(
    store: S,
    options: ControllerOptions,
    requests: mpsc::Receiver<Request>,
    way_back: mpsc::WeakSender<Request>,
    metrics: Arc<ControllerMetrics>,
) -> Result<Starting, ControllerError> {
    let following = Following::start(&store).await?;
    let session = Session::open(&store, options.session_ttl).await?;
    let mut random = match options.seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::from_os_rng(),
    };
    let receiver = following.subscribe();
    let (found, refused) = oneshot::channel();
    let candidate = Candidate {
        node_id: options.node_id,
        incarnation: format!("{:016x}", random.next_u64()),
        endpoint: options.endpoint.clone(),
    };
    let service = Service {
        remote: Remote::new(
            candidate.node_id,
            candidate.incarnation.clone(),
            receiver.clone(),
            way_back,
        ),
        liveness: Liveness::new(candidate.node_id, Timing::of(&options.settings)),
        registration: OwnRegistration::new(options.node_id, options.session_ttl),
        reign: Reign::new(&options.settings, options.is_alone),
        endings: Endings::default(),
        notices: Notices::new(&candidate.incarnation, &options, &metrics),
        following,
        candidate,
        store,
        options,
        random,
        session: Some(session),
        retired: false,
        outrun: None,
        requests,
        task: None,
        running: None,
        unseen: VecDeque::new(),
        trouble: None,
        complaints: Complaints::default(),
        found: Some(found),
        metrics,
    };
    tokio::spawn(service.run());
    Ok((receiver, refused))
}

struct Service<S> {
    store: S,
    options: ControllerOptions,
    candidate: Candidate,
    /// Where commands go that this process may not decide.
    remote: Remote,
    /// Who of the others is alive.
    liveness: Liveness,
    endings: Endings,
    notices: Notices,
    reign: Reign,
    following: Following,
    registration: OwnRegistration,
    /// Whether this process is on its way out.
    retired: bool,
    /// Somebody else was faster to the seal or this broker's id; the image has yet to say so.
    outrun: Option<Instant>,
    random: StdRng,
    /// `None` when a new one has to be opened.
    session: Option<Session>,
    requests: mpsc::Receiver<Request>,
    /// What is being committed.
    task: Option<Task>,
    /// The one call to the store that is under way.
    running: Option<Running>,
    /// Commands whose changes are committed, with the revision they are visible from.
    unseen: VecDeque<(Revision, Asked)>,
    /// What went wrong last, and until when to let it rest.
    trouble: Option<(Instant, ControllerError)>,
    /// What was last said of the store.
    complaints: Complaints<ControllerError>,
    /// Who waits for a cluster hears here that there will be none.
    found: Option<oneshot::Sender<ControllerError>>,
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

impl<S: MetadataStore> Service<S> {
    async fn run(mut self) {
        // Nobody was watched before, so nobody is found to have died.
        let _ = self.watch_the_living(&ClusterImage::default());
        let image = self.following.image();
        self.notices.image(&ClusterImage::default(), &image);
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
                        self.reign.reconcile_again();
                    }
                }
                Event::Timer => self.timer(),
                Event::Request(Some(Request::Command(asked))) => {
                    self.metrics.command_taken(asked.age());
                    self.decide(asked, 0);
                }
                Event::Request(Some(Request::Register(registrant, reply))) => {
                    self.registration.ask(registrant, reply);
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
            event = self.following.next() => Event::Batch(event),
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
        let retry = self.trouble.as_ref().map(|(until, _)| *until);
        let rebalance = self.reign.deadline().filter(|_| self.is_idle());
        [self.registration.deadline(), retry, self.outrun, rebalance]
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
            self.following.lose();
        }
        let image = self.following.image();
        let trouble = self.trouble.as_ref().map(|(_, error)| error);
        self.registration.look_at_the_clock(now, &image, trouble);
    }

    /// Whether nothing is under way and the image has all that was committed.
    fn is_idle(&self) -> bool {
        self.task.is_none() && self.running.is_none() && self.following.is_current()
    }

    fn start_what_is_due(&mut self) {
        if self.running.is_some() || self.trouble.is_some() {
            return;
        }
        let store = self.store.clone();
        if self.following.is_lost() {
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
            && let Some(session) = self.endings.take_next()
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
        let image = self.following.image();
        let session = self.session.as_ref()?;
        if image.cluster_id().is_none() {
            let id = match &self.options.cluster_id {
                Some(id) => id.clone(),
                None => random_topic_id(&mut self.random).to_string(),
            };
            return Some(Task::one(Cause::Upkeep, found_cluster(&id)));
        }
        if !self.retired
            && self.outrun.is_none()
            && let Some(transaction) = self.registration.due(&image, session.id)
        {
            return Some(Task::one(Cause::Race, transaction));
        }
        match self.candidate.seal(&image, session.id) {
            Seal::Free if self.campaigns(&image) && self.outrun.is_none() => {
                let transaction = self.candidate.campaign(session.id);
                Some(Task::one(Cause::Race, transaction))
            }
            Seal::Mine(epoch) if self.retired => {
                Some(Task::one(Cause::Upkeep, Candidate::resign(epoch)))
            }
            Seal::Stale(epoch) => Some(Task::one(Cause::Upkeep, Candidate::resign(epoch))),
            Seal::Mine(epoch) if session.is_alive() => {
                let endings = &mut self.endings;
                self.reign.next_task(epoch, &image, &self.liveness, endings)
            }
            Seal::Taken => {
                self.reign.is_over();
                if let Some(session) = self.liveness.dead_controller(&image)
                    && self.endings.add_once(session)
                {
                    tracing::warn!(%session, "the controller is dead: its session is ended");
                }
                None
            }
            Seal::Mine(_) | Seal::Free => {
                self.reign.is_over();
                None
            }
        }
    }

    /// Whether this process competes for the seal now.
    fn campaigns(&self, image: &ClusterImage) -> bool {
        let wants = match self.options.campaign {
            Campaign::OnceRegistered => self.registration.has_its_number(image),
            Campaign::Never => false,
        };
        wants && !self.retired
    }

    /// A registration that is gone while the session seems to live was fenced, and the
    /// session is about to be ended: registering in it again would not last.
    fn leave_a_fenced_session(&mut self) {
        let image = self.following.image();
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        let holds_seal = matches!(self.candidate.seal(&image, session), Seal::Mine(_));
        if self.registration.is_gone_from(&image, session) && !holds_seal && !self.retired {
            tracing::warn!("this process was fenced and registers again");
            self.endings.add([session]);
            self.session = None;
        }
    }

    fn end_a_former_life(&mut self) {
        if let Some(session) = self.registration.former_life(&self.following.image())
            && self.endings.add_once(session)
        {
            tracing::info!("the registration of this broker's last process is ended");
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Read(Ok((snapshot, batches))) => self.read_anew(&snapshot, batches),
            Done::Session(Ok(session)) => self.session = Some(session),
            Done::Revoked(Ok(())) => {}
            Done::Revoked(Err(error)) => {
                self.endings.failed();
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
            Ok(Commit::Refused) if matches!(task.cause, Cause::Race) => {
                self.outrun = Some(Instant::now() + RETRY_DELAY);
            }
            Ok(Commit::Refused) => {
                // Something is not as the image has it.
                self.following.lose();
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
                self.following.lose();
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
        self.following.committed(revision);
        if !task.advance() {
            self.task = Some(task);
            return;
        }
        match task.cause {
            Cause::Command(asked) => self.unseen.push_back((revision, asked)),
            Cause::Reconcile => self.reign.has_reconciled(),
            Cause::Race | Cause::Upkeep => {}
        }
    }

    fn failed(&mut self, task: Task, error: ControllerError) {
        if let Some(asked) = self.undone(task.cause) {
            asked.finish(Err(error));
        }
    }

    /// A task was not done; the command that it was. What the image asks for is found again
    /// when it is next looked at.
    fn undone(&mut self, cause: Cause) -> Option<Asked> {
        match cause {
            Cause::Command(asked) => Some(asked),
            Cause::Reconcile => {
                self.reign.reconcile_again();
                None
            }
            Cause::Race | Cause::Upkeep => None,
        }
    }

    /// Lets the store rest after an error; until then requests are refused with it.
    fn rest(&mut self, error: ControllerError) {
        let now = Instant::now();
        if self.complaints.is_worth_saying(&error, now) {
            tracing::error!(%error, "the metadata store failed");
        }
        self.metrics.store_failed();
        if matches!(error, ControllerError::Store(StoreError::Denied(_)))
            && self.following.image().cluster_id().is_none()
            && let Some(found) = self.found.take()
        {
            let _ = found.send(error.clone());
        }
        self.trouble = Some((now + RETRY_DELAY, error));
    }

    fn read_anew(&mut self, snapshot: &Snapshot, batches: Watch) {
        match self.following.read_anew(snapshot, batches) {
            Ok(old) => self.moved_on(&old),
            Err(error) => return self.rest(error),
        }
        let Some(mut task) = self.task.take() else {
            return;
        };
        if !task.in_doubt {
            // It was refused; the image says what to do instead.
            let attempts = task.attempts;
            if let Some(asked) = self.undone(task.cause) {
                self.decide(asked, attempts);
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
            Some(Ok(WatchEvent::Batch(batch))) => match self.following.advance(&batch) {
                Ok(Some(old)) => self.moved_on(&old),
                Ok(None) => {}
                Err(error) => self.rest(error),
            },
            Some(Ok(WatchEvent::Compacted)) | None => self.following.lose(),
            Some(Err(error)) => {
                self.following.lose();
                self.rest(error.into());
            }
        }
    }

    /// There is a newer image than `old`.
    fn moved_on(&mut self, old: &ClusterImage) {
        self.outrun = None;
        let are_others_alive = self.watch_the_living(old);
        let new = self.following.image();
        self.notices.image(old, &new);
        if are_others_alive || brokers::asks_for_reconciling(old, &new) {
            self.reign.reconcile_again();
        }
    }

    /// Watches whom the image names, if it is this process's turn to do so; whether others
    /// than before are taken to be alive.
    fn watch_the_living(&mut self, old: &ClusterImage) -> bool {
        let image = self.following.image();
        let candidate = &self.candidate;
        let watches =
            self.campaigns(&image) && is_in_line(&image, candidate.node_id, &candidate.incarnation);
        self.liveness.follow(old, &image, watches, &self.metrics)
    }

    fn answer_what_is_visible(&mut self) {
        let image = self.following.image();
        while let Some((revision, asked)) = self
            .unseen
            .pop_front_if(|(revision, _)| *revision <= image.revision())
        {
            asked.finish(Ok(revision));
        }
        self.registration.follow(&image);
    }

    fn decide(&mut self, mut asked: Asked, attempts: u32) {
        if asked.is_late() {
            return asked.finish(Err(ControllerError::TimedOut));
        }
        let image = self.following.image();
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
        let registered = self.registration.incarnation().map(ToOwned::to_owned);
        self.remote.forward(asked, registered);
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
