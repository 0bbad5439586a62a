//! A checkpoint on a real file system, and a store that fails or dies at each request of it in turn: the old or the new
//! checkpoint is there, whole, with its ledger; and what is left over goes with the next clean-up.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as Stored,
};
use tfos_core::checkpoint::Part;
use tfos_core::config::{Job, RawJob};
use tfos_core::rows::{CommittedRows, RowRange};

use super::*;
use crate::event::CommitRecord;
use crate::ledger::audit;
use crate::model_dir::Restored;

/// What happens at the chosen request.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fault {
    /// Number of the request, from 0.
    at: usize,
    /// It takes effect, and only its answer is lost.
    late: bool,
    /// Nothing works after it: the process or the store is gone.
    for_good: bool,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    requests: Arc<AtomicUsize>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "deliberate".into() }
}

impl Fault {
    /// Counts a request, and refuses it, or says what is to become of its answer.
    fn meet(self, requests: &AtomicUsize) -> Stored<bool> {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        if (number == self.at && !self.late) || (number > self.at && self.for_good) {
            return Err(broken());
        }
        Ok(number == self.at)
    }
}

impl Faulty {
    async fn perform<T>(&self, request: impl Future<Output = Stored<T>>) -> Stored<T> {
        let lost = self.fault.meet(&self.requests)?;
        let done = request.await;
        if lost { Err(broken()) } else { done }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Stored<PutResult> {
        self.perform(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Stored<Box<dyn MultipartUpload>> {
        self.perform(self.inner.put_multipart_opts(at, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Stored<GetResult> {
        self.perform(self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Stored<Vec<bytes::Bytes>> {
        self.perform(self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Stored<Path>>) -> BoxStream<'static, Stored<Path>> {
        let (inner, fault, requests) = (Arc::clone(&self.inner), self.fault, Arc::clone(&self.requests));
        let delete = move |location: Stored<Path>| {
            let (inner, requests) = (Arc::clone(&inner), Arc::clone(&requests));
            async move {
                let location = location?;
                let lost = fault.meet(&requests)?;
                inner.delete(&location).await?;
                if lost { Err(broken()) } else { Ok(location) }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Stored<ObjectMeta>> {
        match self.fault.meet(&self.requests) {
            Ok(false) => self.inner.list(prefix),
            Ok(true) | Err(_) => futures::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Stored<ListResult> {
        self.perform(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Stored<()> {
        self.perform(self.inner.copy_opts(from, to, options)).await
    }
}

const KEEP: usize = 2;

/// Steps from one checkpoint to the next; each trains on one row.
const EVERY: u64 = 10;

/// A driver as far as its checkpoints go.
struct Run {
    committer: Committer,
    step: u64,
}

impl Run {
    /// As `tfos submit` begins.
    async fn start(dir: &ModelDir) -> Result<Self, Error> {
        let generation = dir.claim_generation("{}").await?;
        let (restored, target) = dir.find_checkpoint().await?;
        dir.begin(generation, restored.as_ref()).await?;
        dir.set_aside(&target.skipped, generation).await?;
        let lineage = restored.as_ref().map(|r| r.manifest.ledger.clone()).unwrap_or_default();
        dir.remove_orphans(&lineage, generation).await?;
        let raw = RawJob { application: Some("a".into()), keep_checkpoints: Some(KEEP), ..RawJob::default() };
        let options = DriverOptions {
            job: Job::check(raw).unwrap(),
            token: String::new(),
            generation,
            model_dir: dir.clone(),
            log_dir: Default::default(),
            scratch_dir: String::new(),
            restored: restored.as_ref().map(|r| (r.manifest.global_step, r.manifest.ledger.clone())),
            version: "0".into(),
            notes: tokio::sync::mpsc::unbounded_channel().0,
        };
        let committer = Committer::new(&options, watch::channel(None).0);
        Ok(Self { committer, step: restored.map_or(0, |r| r.manifest.global_step.0) })
    }

    /// Trains and takes a checkpoint: its part as an executor writes it, then what the driver does.
    async fn checkpoint(&mut self) -> Result<u64, Error> {
        let (after, step) = (self.step, GlobalStep(self.step + EVERY));
        let dir = self.committer.dir.clone();
        let path = Paths::part(step, self.committer.generation, 0, 1);
        let bytes = format!("parameters of step {step}").into_bytes();
        let part = Part {
            path: path.clone(),
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(&bytes),
            start: 0,
            end: 1,
            blocks: None,
        };
        let put = dir.store().put(&dir.path(&path), bytes.into()).await;
        put.map_err(|e| dir.error("the part cannot be written", e))?;
        let commit = |n: u64| CommitRecord {
            global_step: n,
            worker: 0,
            loss: 0.0,
            ranges: vec![RowRange { epoch: 0, partition: 0, start: n - 1, end: n }],
            at: std::time::Instant::now(),
        };
        let cut = CheckpointCut {
            step,
            optimizer_step: step.0,
            parts: vec![part],
            layout: "null".into(),
            optimizer: "null".into(),
            rows: CommittedRows::default(),
            rows_total: step.0,
            commits: (after + 1..=step.0).map(commit).collect(),
            input_fingerprint: "f".into(),
            arguments: "{}".into(),
            columns: vec![],
        };
        self.committer.commit(&cut).await?;
        self.step = step.0;
        Ok(self.step)
    }
}

/// The checkpoint that a job would start from, proved whole: every byte of its parts, every row of its ledger.
async fn restored(dir: &ModelDir) -> u64 {
    let (restored, target) = dir.find_checkpoint().await.unwrap();
    assert!(target.skipped.is_empty(), "{:?}", target.skipped);
    let Restored { manifest, .. } = restored.unwrap();
    let rows = vec![Some(manifest.rows_total)];
    let seen = CommittedRows { complete_epochs: 1, partition_rows: rows, ..CommittedRows::default() };
    let audit = audit(dir, &manifest.ledger, &seen).await.unwrap();
    assert_eq!((audit.global_step, audit.rows), (manifest.global_step.0, manifest.rows_total));
    assert!(audit.is_clean(), "{audit:?}");
    manifest.global_step.0
}

/// Files of checkpoints and ledger that no manifest names.
async fn unnamed(dir: &ModelDir) -> Vec<String> {
    let mut files = dir.files(Paths::CHECKPOINTS).await.unwrap();
    files.extend(dir.files(Paths::LEDGER).await.unwrap());
    for (step, manifest) in dir.manifests().await.unwrap() {
        let manifest = manifest.unwrap();
        let parts: Vec<String> = manifest.parts.into_iter().map(|p| p.path).collect();
        files.retain(|f| *f != Paths::manifest(step) && !parts.contains(f) && !manifest.ledger.contains(f));
    }
    files
}

/// A new model directory with three checkpoints of which the oldest is gone, and the job that wrote them.
async fn begun() -> (tempfile::TempDir, ModelDir, Run) {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().join("model").display().to_string()).unwrap();
    let mut run = Run::start(&dir).await.unwrap();
    for _ in 0..3 {
        run.checkpoint().await.unwrap();
    }
    assert_eq!((restored(&dir).await, unnamed(&dir).await.len()), (3 * EVERY, 0));
    (folder, dir, run)
}

/// The same directory through a store with this fault.
fn through(dir: &ModelDir, fault: Fault) -> (ModelDir, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let faulty = Faulty { inner: Arc::clone(dir.store()), fault, requests: Arc::clone(&requests) };
    (dir.through(Arc::new(faulty)), requests)
}

/// The next job goes on, and after a clean-up nothing is there that belongs to nothing. Gives the number of files
/// that the clean-up found.
async fn goes_on(dir: &ModelDir) -> usize {
    let mut next = Run::start(dir).await.unwrap();
    let step = next.checkpoint().await.unwrap();
    assert_eq!(restored(dir).await, step);
    assert_eq!(dir.manifests().await.unwrap().len(), KEEP);
    let mut garbage = unnamed(dir).await;
    let mut listed = dir.collect_garbage(true).await.unwrap();
    garbage.sort();
    listed.sort();
    assert_eq!(garbage, listed);
    assert_eq!(unnamed(dir).await.len(), garbage.len(), "a dry run deletes nothing");
    dir.collect_garbage(false).await.unwrap();
    assert!(unnamed(dir).await.is_empty());
    let folders = std::fs::read_dir(dir.local_path().unwrap().join(Paths::CHECKPOINTS)).unwrap().count();
    assert_eq!(folders, KEEP, "nor an empty folder");
    assert_eq!(restored(dir).await, step);
    garbage.len()
}

/// Runs `body` with a fault at each request, of each kind, until it needs fewer requests.
async fn at_every_request(mut body: impl AsyncFnMut(Fault) -> bool) -> usize {
    for at in 0.. {
        let mut fired = 0;
        for (late, for_good) in [(false, false), (false, true), (true, false), (true, true)] {
            fired += usize::from(body(Fault { at, late, for_good }).await);
        }
        match fired {
            0 => return at,
            4 => {}
            _ => panic!("the kinds of fault differ in the number of requests: {fired} at {at}"),
        }
    }
    unreachable!("it counts up")
}

#[tokio::test] // CKP-1, CKP-4
async fn whatever_request_of_a_checkpoint_fails_the_old_or_the_new_one_is_whole() {
    let (mut kept_old, mut kept_new, mut garbage) = (0, 0, 0);
    let requests = at_every_request(async |fault| {
        let (_folder, dir, mut run) = begun().await;
        let (faulty, requests) = through(&dir, fault);
        run.committer.dir = faulty;
        let before = run.step;
        let mut told = run.checkpoint().await;
        let fired = requests.load(Ordering::SeqCst) > fault.at;
        if told.is_ok() && fired {
            // It failed in the retention, which ends no job: the next checkpoint comes, unless the store stays away.
            let next = run.checkpoint().await;
            assert_eq!(next.is_err(), fault.for_good, "{fault:?}: {next:?}");
            told = next.or(told);
        }
        let now = restored(&dir).await;
        match told {
            Ok(step) => assert_eq!(now, step, "{fault:?}"),
            Err(_) => assert!(now == before || now == before + EVERY, "{fault:?}: {now}"),
        }
        kept_old += usize::from(now == before);
        kept_new += usize::from(now > before);
        garbage += goes_on(&dir).await;
        fired
    })
    .await;
    // Part, segment, the note of it, claims, the next claim, manifest, claims, the next claim, checkpoints, and the
    // manifest, folder and part of the one that goes.
    assert_eq!(requests, 12);
    assert!(kept_old >= 4 && kept_new >= 4 && garbage > 0, "{kept_old} {kept_new} {garbage}");
}

#[tokio::test]
async fn what_a_killed_process_was_writing_goes_too() {
    let (_folder, dir, run) = begun().await;
    let (step, generation) = (GlobalStep(run.step + EVERY), run.committer.generation);
    let names = [Paths::part(step, generation, 0, 1), Paths::ledger_segment(generation, GlobalStep(run.step), step)];
    for name in names {
        let path = dir.local_path().unwrap().join(format!("{name}#1"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half").unwrap();
    }
    assert_eq!(dir.collect_garbage(true).await.unwrap(), [""; 0], "it may still be at it");
    assert_eq!(goes_on(&dir).await, 2);
}

#[tokio::test]
async fn the_best_checkpoint_stays_over_generations_until_there_is_a_better_one() {
    let (_folder, dir, mut run) = begun().await;
    let score = |value: f64| Scores::from([("accuracy".to_owned(), value)]);
    let steps = async || dir.manifests().await.unwrap().into_iter().map(|(s, _)| s.0).collect::<Vec<_>>();
    run.committer.keep.best = Some("accuracy".parse().unwrap());
    run.committer.score(GlobalStep(20), score(0.9)).await;
    run.committer.score(GlobalStep(30), score(0.8)).await;
    run.committer.score(GlobalStep(10), score(1.0)).await;
    assert!(!dir.local_path().unwrap().join(Paths::scores(GlobalStep(10))).exists(), "that one is gone");
    run.checkpoint().await.unwrap();
    assert_eq!(steps().await, [20, 30, 40]);
    let mut next = Run::start(&dir).await.unwrap();
    next.committer.keep.best = Some("accuracy".parse().unwrap());
    next.checkpoint().await.unwrap();
    assert_eq!(steps().await, [20, 40, 50]);
    next.committer.score(GlobalStep(50), score(0.95)).await;
    assert_eq!(steps().await, [40, 50], "at once, and not with the next checkpoint");
    assert_eq!(dir.collect_garbage(true).await.unwrap(), [""; 0]);
}

#[tokio::test] // CKP-3
async fn whatever_request_of_a_start_fails_the_next_start_goes_on() {
    let requests = at_every_request(async |fault| {
        let (_folder, dir, mut run) = begun().await;
        // What a killed driver leaves: a part and a segment without a manifest.
        (run.committer.dir, _) = through(&dir, Fault { at: 3, late: false, for_good: true });
        run.checkpoint().await.unwrap_err();
        assert_eq!(unnamed(&dir).await.len(), 2);
        let (faulty, requests) = through(&dir, fault);
        let started = Run::start(&faulty).await;
        let fired = requests.load(Ordering::SeqCst) > fault.at;
        assert!(started.is_err() || !fired, "{fault:?}");
        assert_eq!(restored(&dir).await, 3 * EVERY);
        goes_on(&dir).await;
        fired
    })
    .await;
    assert!(requests >= 8, "{requests}");
}
