//! Real ps, real files: written by any number of ps, read by each ps of any other number by itself, and trained on.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tfos_core::checkpoint::{FORMAT, Loading, Manifest, Part, Paths};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::CommittedRows;
use tfos_ps::reference::Regression;
use tfos_ps::{
    ClientOptions, InitState, Layout, Load, LocalTrainer, Mode, Optimizer, PsClient, PsServer, Push, Schedule,
    Scheduled, ServerEvent, ServerOptions, Snapshot,
};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::watched::{Reads, Watched};
use super::{CheckpointStore, Content, Destination, Segments};
use crate::node::PartLoader;

const DEADLINE: Duration = Duration::from_secs(30);
const MANIFEST: &str = "checkpoints/000000000010/manifest.json";

fn adam() -> Scheduled {
    Optimizer::adam(0.02).with_schedule(Schedule::cosine(60).with_warmup(5, 0.1))
}

fn store(files: Arc<dyn ObjectStore>) -> CheckpointStore {
    CheckpointStore { store: files, root: Path::default(), local: None, shown: String::new() }
}

/// Where a model is trained: on so many ps, or, with none, here.
enum Trainer {
    Ps {
        client: PsClient,
        servers: Vec<PsServer>,
        snapshots: Vec<Receiver<Snapshot>>,
        stores: Vec<Arc<Watched>>,
        /// A loader stops when its own is gone.
        _stops: Vec<watch::Sender<bool>>,
    },
    Local(LocalTrainer),
}

struct Model {
    problem: Regression,
    layout: Layout,
    params: Vec<f32>,
    buffer: Vec<f32>,
    trainer: Trainer,
}

/// Ps with a store each, whose first reads wait for those of all others: they would wait for ever if one came after
/// the other.
fn servers(runtime: &Runtime, files: &Arc<InMemory>, count: usize) -> Trainer {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let meeting = Arc::new(tokio::sync::Barrier::new(count));
    let (mut servers, mut snapshots, mut stores, mut stops) = (vec![], vec![], vec![], vec![]);
    for (shard, listener) in listeners.into_iter().enumerate() {
        let watched = Watched { inner: Arc::clone(files), meeting: Some(Arc::clone(&meeting)), ..Watched::default() };
        let watched = Arc::new(watched);
        let (stop, stopped) = watch::channel(false);
        stops.push(stop);
        let loader = PartLoader { store: store(watched.clone()), runtime: runtime.handle().clone(), stopped };
        let options = ServerOptions {
            shard,
            num_shards: count,
            peers: peers.clone(),
            token: "t".into(),
            generation: 1,
            num_workers: 1,
            loader: Some(Arc::new(loader)),
        };
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let events = move |event| {
            if let ServerEvent::Snapshot(snapshot) = event {
                drop(sender.lock().unwrap().send(snapshot));
            }
        };
        servers.push(PsServer::start(listener, options, Arc::new(events)).unwrap());
        snapshots.push(receiver);
        stores.push(watched);
    }
    let options =
        ClientOptions { worker: 0, token: "t".into(), generation: 1, is_chief: true, connect_timeout: DEADLINE };
    let client = PsClient::connect(&peers, &options).unwrap();
    Trainer::Ps { client, servers, snapshots, stores, _stops: stops }
}

impl Model {
    /// Fresh, or from the checkpoint.
    fn begin(runtime: &Runtime, files: &Arc<InMemory>, ps: usize, load: bool) -> Self {
        let problem = Regression::new(70, 2);
        let layout = problem.layout().unwrap();
        let (mut params, mut buffer) = (vec![0.0; layout.total], vec![0.0]);
        let loading = Loading::own(MANIFEST);
        let own = store(files.clone());
        let plan = load.then(|| runtime.block_on(own.plan(&loading, &layout, Some(&adam()))).unwrap());
        let (step, optimizer_step) = plan.as_ref().map_or((0, 0), |p| (p.step(), p.optimizer_step()));
        let trainer = if ps == 0 {
            let mut slots = adam().initial_slots(layout.total);
            if let Some(plan) = &plan {
                let named = adam().slots().iter().zip(&mut slots);
                let named = named.map(|(n, s)| ((*n).to_owned(), Segments::new(0, [s.as_mut_slice()])));
                let mut into = Destination {
                    params: Segments::new(0, [params.as_mut_slice()]),
                    slots: named.collect(),
                    buffers: Some(Segments::new(0, [buffer.as_mut_slice()])),
                };
                runtime.block_on(plan.load(0..layout.total, &mut into)).unwrap();
            }
            Trainer::Local(LocalTrainer::with_slots(layout.clone(), adam(), step, optimizer_step, slots).unwrap())
        } else {
            let mut trainer = servers(runtime, files, ps);
            if let Trainer::Ps { client, .. } = &mut trainer {
                let state = InitState {
                    optimizer: adam(),
                    mode: Mode::Async,
                    step,
                    optimizer_step,
                    params: &[&params],
                    slots: &[],
                    buffers: &[&buffer],
                };
                match &plan {
                    None => client.init(&layout, state).unwrap(),
                    Some(plan) => {
                        let what = serde_json::to_string(&loading).unwrap();
                        let (fresh, fresh_buffers) = plan.fresh();
                        client.init_loaded(&layout, state, Load { what, fresh, fresh_buffers }).unwrap();
                        client.pull(&mut [&mut params], &mut [&mut buffer]).unwrap();
                    }
                }
            }
            trainer
        };
        Self { problem, layout, params, buffer, trainer }
    }

    fn train(&mut self, batches: std::ops::Range<u64>) {
        for batch in batches {
            let (loss, gradient) = self.problem.gradient(&self.params, batch * 8..batch * 8 + 8);
            self.buffer[0] += 8.0;
            match &mut self.trainer {
                Trainer::Ps { client, .. } => {
                    let buffers: Option<&[&[f32]]> = Some(&[&self.buffer]);
                    let push = Push { rows: 8, loss, leases: &[], buffers, gradients: &[&gradient] };
                    client.push_pull(push, &mut [&mut self.params]).unwrap();
                }
                Trainer::Local(local) => {
                    let ((b, w), (gb, gw)) = (self.params.split_at_mut(1), gradient.split_at(1));
                    local.apply(&mut [b, w], &[gb, gw]).unwrap();
                }
            }
        }
    }

    /// Writes the checkpoint of step 10 as the nodes do.
    fn save(&mut self, runtime: &Runtime, files: &Arc<InMemory>) {
        let snapshots: Vec<Snapshot> = match &mut self.trainer {
            Trainer::Ps { servers, snapshots, .. } => {
                servers[0].request_snapshot(1).unwrap();
                snapshots.iter().map(|s| s.recv_timeout(DEADLINE).unwrap()).collect()
            }
            Trainer::Local(local) => {
                vec![local.snapshot(1, Box::new(self.params.clone()), &[&self.buffer]).unwrap()]
            }
        };
        let shards = snapshots.len() as u32;
        let mut parts = vec![];
        for (shard, snapshot) in snapshots.into_iter().enumerate() {
            let path = Paths::part(GlobalStep(10), Generation(1), shard as u32, shards);
            let (start, end) = (snapshot.range.start as u64, snapshot.range.end as u64);
            let content = Content::new(&self.layout, snapshot).unwrap();
            let written = runtime.block_on(store(files.clone()).write_part(&path, &content)).unwrap();
            let (bytes, crc32c, blocks) = (written.bytes, written.crc32c, Some(written.blocks));
            parts.push(Part { path, bytes, crc32c, start, end, blocks });
        }
        let manifest = Manifest {
            format: FORMAT,
            tfos_version: "0".into(),
            application: "a".into(),
            generation: Generation(1),
            global_step: GlobalStep(10),
            layout: serde_json::to_value(&self.layout).unwrap(),
            optimizer: serde_json::to_value(adam()).unwrap(),
            arguments: serde_json::Value::Null,
            columns: vec![],
            optimizer_step: 10,
            parts,
            input_fingerprint: String::new(),
            rows: CommittedRows::default(),
            rows_total: 80,
            ledger: vec![],
        };
        let json = serde_json::to_vec(&manifest).unwrap();
        runtime.block_on(files.put(&Path::from(MANIFEST), json.into())).unwrap();
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test] // LOD-2
fn every_number_of_ps_goes_on_from_the_checkpoint_of_every_other() {
    let runtime = runtime();
    let mut unbroken = Model::begin(&runtime, &Arc::default(), 0, false);
    unbroken.train(0..10);
    let at_ten = unbroken.params.clone();
    unbroken.train(10..20);
    for written in 0..4 {
        let files = Arc::<InMemory>::default();
        let mut model = Model::begin(&runtime, &files, written, false);
        model.train(0..10);
        model.save(&runtime, &files);
        for read in 0..4 {
            let mut model = Model::begin(&runtime, &files, read, true);
            assert_eq!((&model.params, &model.buffer[..]), (&at_ten, &[80.0][..]), "{written} ps to {read}");
            model.train(10..20);
            assert_eq!(model.params, unbroken.params, "{written} ps to {read}, trained on");
        }
    }
}

#[test] // LOD-1
fn each_ps_reads_its_own_part_while_the_others_read_theirs() {
    let runtime = runtime();
    let files = Arc::<InMemory>::default();
    let mut model = Model::begin(&runtime, &files, 3, false);
    model.train(0..10);
    model.save(&runtime, &files);
    // That it comes back shows that the first reads of all three met.
    let model = Model::begin(&runtime, &files, 3, true);
    let Trainer::Ps { stores, .. } = &model.trainer else { panic!("there are ps") };
    for (shard, store) in stores.iter().enumerate() {
        let mut reads: Reads = store.take();
        assert!(reads.remove(MANIFEST).is_some());
        let own = Paths::part(GlobalStep(10), Generation(1), shard as u32, 3);
        // Variables are cut in the same way, so its own part is all that it needs.
        assert_eq!(reads.keys().collect::<Vec<_>>(), [&own]);
    }
}

#[test] // LOD-1
fn a_part_that_cannot_be_read_is_told_to_the_chief() {
    let runtime = runtime();
    let files = Arc::<InMemory>::default();
    let mut model = Model::begin(&runtime, &files, 2, false);
    model.train(0..10);
    model.save(&runtime, &files);
    let path = Path::from(Paths::part(GlobalStep(10), Generation(1), 1, 2));
    let good = runtime.block_on(async { files.get(&path).await.unwrap().bytes().await.unwrap() });
    let mut flipped = good.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    runtime.block_on(files.put(&path, flipped.into())).unwrap();
    let mut trainer = servers(&runtime, &files, 2);
    let Trainer::Ps { client, servers, .. } = &mut trainer else { panic!("there are ps") };
    let layout = model.layout.clone();
    let params = vec![0.0; layout.total];
    let state = InitState {
        optimizer: adam(),
        mode: Mode::Async,
        step: 10,
        optimizer_step: 10,
        params: &[&params],
        slots: &[],
        buffers: &[&[0.0]],
    };
    let what = serde_json::to_string(&Loading::own(MANIFEST)).unwrap();
    let error = client.init_loaded(&layout, state, Load { what, ..Load::default() }).unwrap_err().to_string();
    for words in ["cannot be loaded", "part-00001-of-00002", "block 0 has checksum", "damaged"] {
        assert!(error.contains(words), "`{words}` in {error}");
    }
    assert!(servers.iter().all(|s| s.step().is_none()), "a state that is whole nowhere is used nowhere");
    // The connections are in order: the chief may begin otherwise.
    client.init(&layout, state).unwrap();
    assert_eq!(servers[1].step(), Some(10));
}
