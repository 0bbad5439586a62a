//! The libtorch half of a node's context: variables, steps, checkpoints of a trainer without ps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Tensor, nn};
use tfos_core::checkpoint::Loading;
use tfos_core::cluster::Role;
use tfos_core::config::{Compression, Consistency, Overlapping, Placement, Plane, Precision};
use tfos_core::proto::{Commit, Commits, NodeReady, Note, PartWritten, SnapshotAt, from_executor::Message};
use tfos_core::rows::{MicroBatch, encode_ranges};
use tfos_ps::{ClientOptions, Dial, Layout, Mode, Scheduled};

use super::step::Computed;
use super::trainer::{Begin, Loaded, Trainer};
use super::variables::Variables;
use crate::Error;
use crate::checkpoint::{CheckpointStore, Plan};
use crate::control::{Counters, Outgoing, setting};
use crate::feed::{Begun, Hooks};
use crate::node::{HostOptions, NodeContext, PartWriter, PhaseKind, Request, Requests, dial};

/// Commits of a trainer without ps travel together: this many, or as many as come in this time.
const COMMITS: usize = 64;
const COMMIT_DELAY: Duration = Duration::from_millis(20);

/// How long a ps may take to answer a new trainer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module's text.
pub(crate) struct TorchState {
    vs: nn::VarStore,
    shared: Arc<Shared>,
    connect: Option<(Vec<String>, ClientOptions)>,
    dial: Dial,
    plane: Plane,
    /// Whether the node function computes in mixed precision.
    bf16: bool,
    max_steps: u64,
}

/// What feed, host and steps share.
pub(crate) struct Shared {
    phase: u32,
    trainer_number: u32,
    trainer: Mutex<Option<Trainer>>,
    commits: Mutex<(Vec<Commit>, Option<Instant>)>,
    requests: Arc<Requests>,
    outgoing: Outgoing,
    counters: Arc<Counters>,
    writer: PartWriter,
    runtime: tokio::runtime::Handle,
    ended: Mutex<bool>,
    /// Of the job.
    seed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The devices that libtorch sees, for people.
pub fn describe_devices() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned()];
    // Loading the CUDA half of libtorch takes seconds, and without a driver it finds nothing.
    let driver = std::path::Path::new("/dev/nvidiactl").exists();
    if !driver || super::shim::load_cuda().is_err() {
        return devices;
    }
    devices.extend((0..tch::Cuda::device_count().max(0)).map(|i| format!("cuda:{i}")));
    devices
}

impl TorchState {
    pub(crate) fn new(
        options: &HostOptions,
        kind: PhaseKind,
        store: CheckpointStore,
        requests: Arc<Requests>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, Error> {
        // The linker leaves the CUDA half of libtorch out unless it is loaded before the first question about it.
        let loaded = if options.devices.is_empty() { Ok(()) } else { super::shim::load_cuda() };
        let device = if options.devices.is_empty() {
            Device::Cpu
        } else if let Err(e) = loaded {
            return Err(Error::Other(Box::new(e)));
        } else if tch::Cuda::is_available() {
            Device::Cuda(0)
        } else {
            return Err(Error::Usage {
                what: format!("GPU {} is leased, and libtorch cannot use it", options.devices.join(",")),
                try_this: "check the driver with nvidia-smi, or leave --num-gpus out".into(),
            });
        };
        let consistency: Consistency = setting(&options.start.consistency)?;
        let precision: Precision = setting(&options.start.precision)?;
        let trains = kind == PhaseKind::Train && options.node.role.trains();
        let bf16 = precision == Precision::Bf16 && trains;
        let dial = dial(&consistency);
        let plane = setting(&options.start.plane)?;
        let addresses = options.spec.addresses(Role::Ps);
        let connect = (kind == PhaseKind::Train && options.node.role.trains() && !addresses.is_empty()).then(|| {
            let client = ClientOptions {
                worker: options.trainer,
                token: options.token.clone(),
                generation: options.generation,
                is_chief: options.trainer == 0,
                connect_timeout: CONNECT_TIMEOUT,
            };
            (addresses.to_vec(), client)
        });
        // Different on every trainer (dropout, augmentation); the variables come from the chief.
        tch::manual_seed(options.start.seed.wrapping_add(u64::from(options.trainer)) as i64);
        let shared = Shared {
            phase: options.start.phase,
            trainer_number: options.trainer,
            trainer: Mutex::new(None),
            commits: Mutex::default(),
            requests,
            outgoing: options.outgoing.clone(),
            counters: Arc::clone(&options.counters),
            writer: PartWriter {
                phase: options.start.phase,
                shard: 0,
                shards: 1,
                generation: options.generation,
                store,
                outgoing: options.outgoing.clone(),
                heir: options.heir.clone(),
            },
            runtime,
            ended: Mutex::new(false),
            seed: options.start.seed,
        };
        let max_steps = options.start.max_steps;
        let vs = nn::VarStore::new(device);
        Ok(Self { vs, shared: Arc::new(shared), connect, dial, plane, bf16, max_steps })
    }

    /// Called by the thread that computes, before anything else.
    pub(crate) fn begin_thread(&self) -> Result<(), Error> {
        if self.bf16 {
            tracing::info!("products and convolutions are computed in bf16, variables stay f32");
            super::precision::begin_thread(self.vs.device())?;
        }
        if self.dial.mode == Mode::Deterministic { super::deterministic::begin_thread() } else { Ok(()) }
    }

    pub(crate) fn hooks(&self) -> Arc<dyn Hooks> {
        Arc::clone(&self.shared) as Arc<dyn Hooks>
    }
}

impl Shared {
    fn commit(&self, commit: Commit) {
        let mut commits = lock(&self.commits);
        commits.0.push(commit);
        let since = *commits.1.get_or_insert_with(Instant::now);
        if commits.0.len() >= COMMITS || since.elapsed() >= COMMIT_DELAY {
            drop(commits);
            self.flush();
        }
    }

    fn flush(&self) {
        let mut pending = lock(&self.commits);
        pending.1 = None;
        let commits = std::mem::take(&mut pending.0);
        if !commits.is_empty() {
            self.outgoing.send(Message::Commits(Commits { phase: self.phase, commits }));
        }
    }

    fn meet_early(&self, trainer: &mut Trainer) -> Result<(), Error> {
        let begin = Instant::now();
        if let Some(stepped) = trainer.meet_early()? {
            self.counters.wait_ps(begin.elapsed());
            self.counters.set_step(stepped.step);
            self.counters.add_rows(stepped.rows);
            *lock(&self.ended) |= stepped.stop;
        }
        Ok(())
    }

    fn serve(&self) -> Result<(), Error> {
        let next = lock(&self.requests.receiver).try_recv();
        if let Ok(Request::Snapshot { id }) = next {
            self.snapshot(id)?;
        }
        Ok(())
    }
}

impl Hooks for Shared {
    fn waiting(&self) -> Result<(), Error> {
        self.flush();
        self.serve()
    }

    fn idle(&self) -> Result<(), Error> {
        if let Some(trainer) = lock(&self.trainer).as_mut() {
            // Others may wait for what this node has not pushed yet.
            self.meet_early(trainer)?;
            *lock(&self.ended) |= trainer.idle()?;
        }
        Ok(())
    }

    fn active(&self) -> Result<(), Error> {
        if let Some(trainer) = lock(&self.trainer).as_mut() {
            *lock(&self.ended) |= trainer.active()?;
        }
        Ok(())
    }

    fn snapshot(&self, id: u64) -> Result<(), Error> {
        self.flush();
        let phase = self.phase;
        let taken = match lock(&self.trainer).as_mut().filter(|t| t.is_local()) {
            Some(trainer) => trainer.snapshot(id)?.map(|s| (Arc::clone(&trainer.layout), s)),
            None => None,
        };
        let global_step = self.counters.step();
        self.outgoing.send(Message::SnapshotAt(SnapshotAt { phase, id, global_step }));
        match taken {
            Some((layout, snapshot)) => drop(self.runtime.spawn(self.writer.clone().write(layout, snapshot))),
            None => self.outgoing.send(Message::PartWritten(PartWritten { phase, id, ..Default::default() })),
        }
        Ok(())
    }

    fn begin(&self, micro_batch: MicroBatch) -> Result<Begun, Error> {
        let waiting = Instant::now();
        // Whoever has no model finds out when it takes a step.
        let Some((begun, step)) = lock(&self.trainer).as_mut().map(|t| t.begin(micro_batch)).transpose()? else {
            return Ok(Begun::Yes);
        };
        self.counters.wait_ps(waiting.elapsed());
        self.counters.set_step(step);
        if begun == Begun::Yes {
            // What dropout forgets depends on the micro-batch, not on who computes it or what that one did before.
            tch::manual_seed(micro_batch.seed(self.seed) as i64);
        }
        Ok(begun)
    }
}

impl NodeContext {
    /// Device of this node's model: the first GPU that it holds, or the CPU.
    pub fn device(&self) -> Device {
        self.torch.vs.device()
    }

    /// Root path of the model's variables: build the network on it, then call [`Self::train_with`].
    ///
    /// With parameter servers they are the servers': what is changed here in place is lost with the next step, and a view of
    /// a variable that was made during training (`w.detach()`) does not see later steps.
    pub fn variables(&self) -> nn::Path<'_> {
        self.torch.vs.root()
    }

    /// The variables are complete: the chief initialises or restores them, the others wait for it, and every
    /// later [`Self::step`] updates them with `optimizer`, which may have a [`tfos_ps::Schedule`] and clip gradients.
    /// Outside training the checkpoint is loaded and `optimizer` has no use.
    pub fn train_with(&mut self, optimizer: impl Into<Scheduled>) -> Result<(), Error> {
        let optimizer = optimizer.into();
        if let Some(norm) = optimizer.clip_norm.filter(|norm| !norm.is_finite() || *norm <= 0.0) {
            return Err(Error::Usage {
                what: format!("gradients cannot be clipped to the norm {norm}"),
                try_this: "give a positive number, or leave the clipping out".into(),
            });
        }
        if self.kind != PhaseKind::Train || !self.node.role.trains() {
            return self.load();
        }
        let shards = self.torch.connect.as_ref().map(|(addresses, _)| addresses.len());
        let created = self.torch.vs.trainable_variables();
        let whole = shards.filter(|_| self.torch.plane.placement == Placement::RoundRobin);
        let variables = Variables::collect(self.torch.vs.variables(), whole.map(|shards| (shards, &created[..])))?;
        self.torch
            .dial
            .check(&variables.layout, &optimizer)
            .map_err(|what| Error::Usage { what, try_this: "change --consistency, or the model".into() })?;
        let chief = self.trainer == 0;
        let loading = self.loading.clone().filter(|_| chief);
        let plan = loading.as_ref().map(|loading| self.plan(loading, &variables.layout, Some(&optimizer)));
        let plan = plan.transpose()?;
        let client = match &self.torch.connect {
            Some((addresses, options)) => Some(crate::plane::connect(&self.torch.plane, addresses, options)?),
            None => None,
        };
        let load = loading.as_ref().zip(plan.as_ref());
        let load = load.map(|(loading, plan)| Loaded { loading, plan, runtime: &self.runtime });
        // What is compressed is sent as a whole.
        let overlap = match self.torch.plane.overlap {
            Overlapping::Auto if self.torch.plane.compress == Compression::None => None,
            wanted => Some(wanted == Overlapping::On),
        };
        let begin = Begin { optimizer, mode: self.torch.dial.mode, load, chief, overlap };
        if let Some(shards) = shards.filter(|_| chief) {
            crate::plane::tell(&variables.layout, shards, &self.torch.plane);
        }
        let (trainer, step) = Trainer::new(variables, &begin, client)?;
        self.counters.set_step(step);
        if chief {
            self.outgoing.send(Message::NodeReady(NodeReady {
                phase: self.phase,
                layout: serde_json::to_string(&*trainer.layout).unwrap_or_default(),
                optimizer: serde_json::to_string(&trainer.optimizer).unwrap_or_default(),
            }));
        }
        *lock(&self.torch.shared.trainer) = Some(trainer);
        Ok(())
    }

    /// Loads the checkpoint that this phase was started with into the variables.
    pub fn load(&mut self) -> Result<(), Error> {
        let loading = self.loading.clone().ok_or_else(|| Error::Usage {
            what: "there is no checkpoint to load".into(),
            try_this: "train first, or give the --model-dir of a trained model".into(),
        })?;
        self.load_as(&loading)
    }

    /// Loads another checkpoint of the job into the variables, given the path of its manifest relative to the model
    /// directory.
    pub fn load_from(&mut self, manifest: &str) -> Result<(), Error> {
        self.load_as(&Loading::own(manifest))
    }

    fn load_as(&mut self, loading: &Loading) -> Result<(), Error> {
        let mut variables = Variables::collect(self.torch.vs.variables(), None)?;
        let plan = self.plan(loading, &variables.layout, None)?;
        variables.load(&Loaded { loading, plan: &plan, runtime: &self.runtime }, vec![])?;
        self.counters.set_step(plan.step());
        Ok(())
    }

    fn plan(&self, loading: &Loading, model: &Layout, optimizer: Option<&Scheduled>) -> Result<Plan, Error> {
        let plan = self.runtime.block_on(self.store.plan(loading, model, optimizer))?;
        for text in plan.notes().iter().cloned() {
            tracing::info!("{text}");
            // Every node finds the same; one of them says it.
            if self.trainer == 0 && self.node.role.trains() {
                self.outgoing.send(Message::Note(Note { text }));
            }
        }
        Ok(plan)
    }

    /// Backward pass of `loss` (a scalar, mean over the rows of the batch) and one update of the model, which
    /// commits the rows of the batch that the feed gave last. Returns the global step of the parameters that the
    /// variables now hold.
    ///
    /// One step belongs to one batch: rows of a batch without a step count as passed over when the next batch is
    /// asked for. For larger steps ask [`DataFeed::next_batch`](crate::DataFeed::next_batch) for more rows.
    ///
    /// In synchronous training an update that came too late is dropped, never silently: its rows return to the
    /// driver and are trained on again.
    ///
    /// In local SGD the variables are this node's own for a number of updates; the global step goes on when they are averaged.
    ///
    /// In deterministic training this gradient is one of several that make an update: the variables change before the
    /// first batch of the next step is given out.
    pub fn step(&mut self, loss: &Tensor) -> Result<u64, Error> {
        let shared = Arc::clone(&self.torch.shared);
        let value = loss.f_double_value(&[])?;
        let (ranges, rows, micro_batch) = match &self.feed {
            Some(feed) => {
                feed.passed.tell();
                let mut out = lock(&feed.outstanding);
                (std::mem::take(&mut out.ranges), std::mem::take(&mut out.rows), out.micro_batch.take())
            }
            None => (vec![], 0, None),
        };
        let mut guard = lock(&shared.trainer);
        let trainer = guard.as_mut().ok_or_else(|| Error::Usage {
            what: "step was called before train_with".into(),
            try_this: "build the network on ctx.variables(), then call ctx.train_with(optimizer)".into(),
        })?;
        let step = self.counters.step();
        if !value.is_finite() {
            let rows = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            return Err(Error::Diverged { loss: value, step, rows });
        }
        let mut leases = vec![];
        encode_ranges(&ranges, &mut leases);
        let begin = Instant::now();
        let local = trainer.is_local();
        let stepped = trainer.step(loss, Computed { loss: value, rows, leases: &leases, micro_batch })?;
        drop(guard);
        if !local {
            self.counters.wait_ps(begin.elapsed());
        }
        self.counters.set_step(stepped.step);
        self.counters.add_rows(stepped.rows);
        let mut ended = stepped.stop || *lock(&shared.ended);
        if local {
            let (global_step, worker) = (stepped.step, shared.trainer_number);
            let commit = |rows: u64, loss: f64, leases: Vec<u8>| {
                shared.commit(Commit { global_step, worker, rows, loss, ranges: leases.into(), staleness: 0 });
            };
            if micro_batch.is_none() {
                commit(rows, value, leases);
            } else if !stepped.parts.is_empty() {
                stepped.parts.into_iter().for_each(|part| commit(part.rows, part.loss, part.leases));
                // The driver leases the rows of the step after the next when it hears of this one.
                shared.flush();
            }
            shared.serve()?;
            ended |= self.torch.max_steps > 0 && stepped.step >= self.torch.max_steps;
        }
        if let Some(feed) = self.feed.as_ref().filter(|_| ended) {
            feed.queue.close();
        }
        Ok(stepped.step)
    }

    /// The function has returned: last commits go out, the ps are told.
    pub(crate) fn finish_training(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.torch.shared);
        shared.flush();
        let taken = lock(&shared.trainer).take();
        if let Some(mut trainer) = taken {
            shared.meet_early(&mut trainer)?;
            let kept = trainer.finish()?;
            *lock(&shared.trainer) = kept;
        }
        Ok(())
    }
}
