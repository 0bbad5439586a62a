//! The driver's loop: receive an event, ask the state, perform its actions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tfos_core::cluster::ClusterSpec;
use tfos_core::config::Job;
use tfos_core::ids::{ExecutorId, Generation, GlobalStep};
use tfos_core::proto::{ClusterFormed, Welcome, from_driver};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::commit::Committer;
use crate::error::Error;
use crate::event::{Action, CheckpointCut, Connection, Event, Stored};
use crate::journal::{Journal, Recorder};
use crate::launcher::{Launcher, Rendezvous};
use crate::ledger::wall_clock_ms;
use crate::model_dir::ModelDir;
use crate::server::{Server, Streams};
use crate::state::{Options, PhaseOutcome, PhaseSpec, State};
use crate::status::Status;

/// How often the state is asked whether time has brought something.
const TICK: Duration = Duration::from_millis(50);

/// How long an executor that was asked to stop may take before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Everything a driver needs beyond its executors.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// The job's settings.
    pub job: Job,
    /// Token that executors have to show.
    pub token: String,
    /// This incarnation.
    pub generation: Generation,
    /// Where checkpoints go.
    pub model_dir: ModelDir,
    /// Folder of the nodes' logs.
    pub log_dir: PathBuf,
    /// Folder for outputs of inference; on a file system that all nodes share.
    pub scratch_dir: String,
    /// The checkpoint that the job starts from.
    pub restored: Option<(GlobalStep, Vec<String>)>,
    /// The program's version.
    pub version: String,
    /// Takes the lines that the user has to see. It is let go of when the driver has ended.
    pub notes: UnboundedSender<String>,
}

/// A running driver. Dropping it without [`Driver::shutdown`] still kills and reaps every local executor.
#[derive(Debug)]
pub struct Driver {
    events: UnboundedSender<Event>,
    status: watch::Receiver<Status>,
    formed: watch::Receiver<Option<ClusterSpec>>,
    failure: watch::Receiver<Option<Arc<Error>>>,
    phase: Arc<std::sync::Mutex<Option<oneshot::Sender<PhaseOutcome>>>>,
    stored: watch::Receiver<Option<Arc<Stored>>>,
    task: tokio::task::JoinHandle<()>,
    address: SocketAddr,
    url: String,
}

struct Loop {
    options: DriverOptions,
    state: State,
    streams: Streams,
    connections: BTreeMap<ExecutorId, Connection>,
    events: UnboundedSender<Event>,
    launcher: Option<Box<dyn Launcher>>,
    status: watch::Sender<Status>,
    formed: watch::Sender<Option<ClusterSpec>>,
    failure: watch::Sender<Option<Arc<Error>>>,
    phase: Arc<std::sync::Mutex<Option<oneshot::Sender<PhaseOutcome>>>>,
    committer: Arc<tokio::sync::Mutex<Committer>>,
    journal: Journal,
    recorder: Option<Recorder>,
    /// What is being written to the model directory.
    writing: tokio::task::JoinSet<()>,
    stopped: bool,
}

impl Driver {
    /// Binds the control port, starts the server, launches the executors.
    pub async fn start(options: DriverOptions, mut launcher: Box<dyn Launcher>) -> Result<Self, Error> {
        let listener = options.job.port.bind(&options.job.bind)?;
        let file = |source| Error::File { path: options.job.bind.clone(), action: "listened on", source };
        listener.set_nonblocking(true).map_err(file)?;
        let address = listener.local_addr().map_err(file)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(file)?;
        let host = options.job.advertise.clone().unwrap_or_else(|| advertised_host(address));
        let url = format!("http://{host}:{}", address.port());
        let (events, receiver) = unbounded_channel();
        let streams = Streams::default();
        let (quit_tx, quit_rx) = oneshot::channel::<()>();
        let server = Server::new(options.token.clone(), options.version.clone(), events.clone(), streams.clone());
        tokio::spawn(server.serve(listener, quit_rx));
        let state = State::new(
            now(),
            Options {
                shape: options.job.shape,
                num_gpus: options.job.num_gpus,
                reservation_timeout: options.job.reservation_timeout,
                heartbeat_timeout: options.job.heartbeat_timeout,
                save_steps: options.job.save_checkpoints_steps,
                save_every: options.job.save_checkpoints_every,
                checkpoint_failure_limit: options.job.checkpoint_failure_limit,
                generation: options.generation.0,
                version: options.version.clone(),
            },
        );
        let rendezvous =
            Rendezvous { url: url.clone(), token: options.token.clone(), log_dir: options.log_dir.clone() };
        // Forking blocks; the driver has nothing else to do yet.
        launcher.launch(&rendezvous, events.clone())?;
        let (status_tx, status) = watch::channel(state.status());
        let (formed_tx, formed) = watch::channel(None);
        let (failure_tx, failure) = watch::channel(None);
        let (stored_tx, stored) = watch::channel(None);
        let phase = Arc::new(std::sync::Mutex::new(None));
        let committer = Arc::new(tokio::sync::Mutex::new(Committer::new(&options, stored_tx)));
        let mut journal = Journal::new(options.generation, options.job.shape);
        journal.begin(
            wall_clock_ms(now()),
            options.restored.as_ref().map(|(step, _)| *step),
            format!("{}, {} executors", options.job.application, options.job.shape.cluster_size),
        );
        // Nobody else knows a temporary one.
        if options.job.model_dir.is_some() {
            tokio::spawn(crate::settings::watch(options.model_dir.clone(), options.generation, events.clone()));
        }
        let recorder = Some(Recorder::start(options.model_dir.clone(), options.generation));
        let job = Loop {
            journal,
            recorder,
            options,
            state,
            streams,
            connections: BTreeMap::new(),
            events: events.clone(),
            launcher: Some(launcher),
            status: status_tx,
            formed: formed_tx,
            failure: failure_tx,
            phase: Arc::clone(&phase),
            committer,
            writing: tokio::task::JoinSet::new(),
            stopped: false,
        };
        let task = tokio::spawn(job.run(receiver, quit_tx));
        Ok(Self { events, status, formed, failure, phase, stored, task, address, url })
    }

    /// Where the control server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL for executors.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The job's status, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Newest checkpoint that this driver has committed.
    pub fn stored(&self) -> Option<Arc<Stored>> {
        self.stored.borrow().clone()
    }

    /// A handle to stop the job from elsewhere.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter { events: self.events.clone() }
    }

    async fn failed(&self) -> Arc<Error> {
        let mut failure = self.failure.clone();
        let seen = failure.wait_for(Option::is_some).await.map(|f| f.clone());
        seen.ok().flatten().unwrap_or_else(|| Arc::new(Error::Stopped))
    }

    /// Waits until every executor has its role. Ends at the latest with the reservation timeout.
    pub async fn formed(&self) -> Result<ClusterSpec, Arc<Error>> {
        let mut formed = self.formed.clone();
        tokio::select! {
            // The loop ends right after a failure, and its channels with it: the failure says more.
            biased;
            error = self.failed() => Err(error),
            spec = formed.wait_for(Option::is_some) => {
                spec.ok().and_then(|s| s.clone()).ok_or_else(|| Arc::new(Error::Stopped))
            }
        }
    }

    /// Runs a phase to its end.
    pub async fn run_phase(&self, spec: PhaseSpec) -> Result<PhaseOutcome, Arc<Error>> {
        let (done_tx, done_rx) = oneshot::channel();
        *self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(done_tx);
        self.events.send(Event::StartPhase(Box::new(spec))).map_err(|_| Arc::new(Error::Stopped))?;
        tokio::select! {
            biased;
            error = self.failed() => Err(error),
            outcome = done_rx => outcome.map_err(|_| Arc::new(Error::Stopped)),
        }
    }

    /// The engine that runs the query of this phase has given up. The job ends, by what its nodes say of it if they do.
    pub fn query_failed(&self, reason: String) {
        let _ = self.events.send(Event::QueryFailed { reason });
    }

    /// Stops and reaps every executor.
    pub async fn shutdown(self, reason: &str) {
        let _ = self.events.send(Event::Shutdown { reason: reason.to_owned() });
        let _ = self.task.await;
    }
}

/// Stops a job from a signal handler or another thread.
#[derive(Debug, Clone)]
pub struct Interrupter {
    events: UnboundedSender<Event>,
}

impl Interrupter {
    /// Finish the batch at hand, checkpoint, stop.
    pub fn drain(&self) {
        let _ = self.events.send(Event::Drain);
    }
}

/// The first failure of a job is the one that is told.
fn set_first(failure: &watch::Sender<Option<Arc<Error>>>, error: Error) {
    failure.send_if_modified(|f| {
        let first = f.is_none();
        if first {
            *f = Some(Arc::new(error));
        }
        first
    });
}

/// The loop's only source of time.
fn now() -> Instant {
    Instant::now()
}

/// What others dial when nothing was said: the bound address, or this host's name for the wildcard.
fn advertised_host(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "127.0.0.1".into())
    } else if address.is_ipv6() {
        format!("[{}]", address.ip())
    } else {
        address.ip().to_string()
    }
}

impl Loop {
    async fn run(mut self, mut events: UnboundedReceiver<Event>, quit: oneshot::Sender<()>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.stopped {
            tokio::select! {
                event = events.recv() => {
                    let event = event.unwrap_or(Event::Shutdown { reason: "the application ended".into() });
                    self.handle(event).await;
                }
                _ = tick.tick() => {
                    // What has arrived counts before the clock does: a heartbeat in the queue is a sign of life.
                    for _ in 0..events.len() {
                        if let Ok(event) = events.try_recv() {
                            self.handle(event).await;
                        }
                    }
                    self.handle(Event::Tick).await;
                }
            }
            let status = self.state.status();
            self.status.send_if_modified(|old| {
                let changed = *old != status;
                *old = status;
                changed
            });
        }
        // What came while everybody was being stopped is noted, and no longer acted upon.
        while let Ok(event) = events.try_recv() {
            self.journal.on_event(wall_clock_ms(now()), &event);
        }
        if let Some(recorder) = self.recorder.take() {
            recorder.record(&self.journal);
            let _ = tokio::time::timeout(STOP_GRACE, recorder.finish()).await;
        }
        drop(quit);
    }

    async fn handle(&mut self, event: Event) {
        let now = now();
        let time_ms = wall_clock_ms(now);
        let mut worth_it = self.journal.on_event(time_ms, &event);
        for action in self.state.on_event(now, event) {
            worth_it |= self.journal.on_action(time_ms, &action);
            self.perform(action).await;
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| worth_it) {
            recorder.record(&self.journal);
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Accept { connection, executor } => {
                self.connections.insert(executor, connection);
                let heartbeat = self.options.job.heartbeat_timeout / 6;
                let welcome = Welcome {
                    executor_id: executor.0,
                    generation: self.options.generation.0,
                    heartbeat_ms: heartbeat.as_millis() as u64,
                };
                self.streams.send(connection, from_driver::Message::Welcome(welcome));
            }
            Action::Refuse { connection, refusal } => {
                self.streams.refuse(connection, &refusal);
            }
            Action::Send { executor, message } => {
                if let Some(connection) = self.connections.get(&executor) {
                    self.streams.send(*connection, message);
                }
            }
            Action::Formed(spec) => {
                self.announce(&spec);
                self.formed.send_replace(Some(spec));
            }
            Action::FormFailed { reason } => self.fail(Error::NotFormed { reason }),
            Action::CommitCheckpoint(cut) => self.commit(*cut),
            Action::Score { step, scores } => {
                let committer = Arc::clone(&self.committer);
                self.write(async move { committer.lock().await.score(step, scores).await });
            }
            Action::AnswerSet { number, answer } => {
                let said = match (&answer.error, answer.global_step) {
                    (None, Some(step)) => format!("consistency is {} after step {step}", answer.consistency),
                    (error, _) => {
                        format!("consistency cannot be {}: {}", answer.consistency, error.as_deref().unwrap_or("?"))
                    }
                };
                let _ = self.options.notes.send(said);
                let (dir, generation) = (self.options.model_dir.clone(), self.options.generation);
                self.write(async move {
                    if let Err(error) = crate::settings::reply(&dir, generation, number, &answer).await {
                        tracing::warn!("{}", tfos_core::failure::chain(&error).join(": "));
                    }
                });
            }
            Action::PhaseDone(outcome) => {
                let waiter = self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                if let Some(waiter) = waiter {
                    let _ = waiter.send(*outcome);
                }
            }
            Action::Fail(failure) => self.fail(Error::Failed(failure)),
            Action::StopAll => self.stop_all().await,
            // The journal has it.
            Action::Reported { .. } | Action::Lost(_) => {}
            Action::CheckpointsFail { failures, reason } => self.fail(Error::Checkpoints { failures, reason }),
            Action::AnswerRescue { ticket, wanted } => self.streams.answer(ticket, wanted),
            Action::Note(text) => tracing::info!("{text}"),
            Action::Warn(text) => tracing::warn!("{text}"),
            Action::Say(text) => drop(self.options.notes.send(text)),
        }
    }

    fn fail(&self, error: Error) {
        set_first(&self.failure, error);
    }

    fn announce(&self, spec: &ClusterSpec) {
        let json = serde_json::to_string(spec).unwrap_or_default();
        let job = &self.options.job;
        for (executor, connection) in &self.connections {
            let Some(node) = job.shape.node_of(*executor) else { continue };
            let formed = ClusterFormed {
                node: serde_json::to_string(&node).unwrap_or_default(),
                spec: json.clone(),
                num_trainers: job.shape.num_trainers(),
                application: job.application.clone(),
                model_dir: self.options.model_dir.url().to_string(),
                scratch_dir: self.options.scratch_dir.clone(),
                feed_memory: job.feed_memory,
                num_gpus: job.num_gpus,
            };
            self.streams.send(*connection, from_driver::Message::ClusterFormed(formed));
        }
    }

    /// Beside the loop: a slow store holds up neither leases nor heartbeats.
    fn commit(&mut self, cut: CheckpointCut) {
        let (committer, events) = (Arc::clone(&self.committer), self.events.clone());
        let failure = self.failure.clone();
        self.write(async move {
            let event = match committer.lock().await.commit(&cut).await {
                Ok(manifest) => Event::CheckpointStored { step: cut.step, manifest },
                Err(error) => {
                    let reason = tfos_core::failure::chain(&error).join(": ");
                    let is_final = error.is_final();
                    if is_final {
                        set_first(&failure, error);
                    }
                    Event::CheckpointFailed { reason, is_final, cut: Box::new(cut) }
                }
            };
            let _ = events.send(event);
        });
    }

    fn write(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        while self.writing.try_join_next().is_some() {}
        self.writing.spawn(work);
    }

    async fn stop_all(&mut self) {
        self.stopped = true;
        // A checkpoint that is nearly written is worth a moment; half of one does no harm.
        let written = async { while self.writing.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_GRACE, written).await;
        if let Some(mut launcher) = self.launcher.take() {
            // Messages to stop are on their way; reaping blocks, so it has a thread of its own.
            let reaped = tokio::task::spawn_blocking(move || launcher.stop(STOP_GRACE)).await;
            if reaped.is_err() {
                tracing::error!("the launcher panicked while it stopped the executors");
            }
        }
        // An executor that somebody else started goes home by itself once it has read that it may.
        let _ = tokio::time::timeout(STOP_GRACE, self.streams.all_gone()).await;
        self.streams.close();
    }
}
