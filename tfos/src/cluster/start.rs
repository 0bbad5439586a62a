//! From settings to a cluster: model directory, generation, restored checkpoint, executors; and back.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rand::RngCore;
use tfos_core::checkpoint::Loading;
use tfos_core::config::{Job, LogDir, Master};
use tfos_core::ids::Generation;
use tfos_driver::launcher::{Launcher, Local, Standalone};
use tfos_driver::model_dir::{ModelDir, Restored};
use tfos_driver::run::Interrupter;
use tfos_driver::{Driver, DriverOptions, Status};
use tokio::sync::watch;

use super::progress::Progress;
use super::{Cluster, Digest, Report, digest};
use crate::portable::unpack::Export;
use crate::{Application, Error, Result};

/// How the command wants a cluster to behave.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    /// No progress.
    pub(crate) quiet: bool,
    /// Called before the process ends at once, to say so where results go.
    pub(crate) on_abort: fn(),
    /// The model to start from, in a model directory of the job's own.
    pub(crate) export: Option<Export>,
}

/// What is left of a cluster when its application has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) report: Report,
    pub(crate) generation: u64,
    /// Manifest of the newest checkpoint, and its step.
    pub(crate) checkpoint: Option<(String, u64)>,
    /// Of what it holds, in deterministic training.
    pub(crate) digest: Option<Digest>,
    /// The user named the model directory, so it stays.
    pub(crate) kept: bool,
    pub(crate) model_dir: String,
}

fn system(what: String) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System { what, source }
}

impl Cluster {
    /// Opens the model directory, finds the checkpoint to resume from, and starts the executors.
    pub(crate) fn start(job: Job, application: Arc<dyn Application>, started: Started) -> Result<Self> {
        let begun = Instant::now();
        let progress = Progress::new(started.quiet);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("driver").build();
        let runtime = runtime.map_err(system("start the driver's threads".into()))?;
        let temporary = match &job.model_dir {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("tfos-")
                    .tempdir()
                    .map_err(system("create a temporary folder".into()))?,
            ),
        };
        let interrupts = Interrupts {
            driver: Arc::default(),
            progress: progress.clone(),
            temporary: temporary.as_ref().map(|dir| dir.path().to_owned()),
            on_abort: started.on_abort,
        };
        // From here on a Ctrl-C is answered, and the temporary folder is removed.
        let running = Arc::clone(&interrupts.driver);
        runtime.spawn(interrupts.listen());
        let address = match (&job.model_dir, &temporary) {
            (Some(url), _) => url.clone(),
            (None, Some(dir)) => {
                if started.export.is_none() {
                    progress.say("no --model-dir: checkpoints go to a temporary folder and are gone with the job");
                }
                dir.path().display().to_string()
            }
            (None, None) => ".".into(),
        };
        let model_dir = ModelDir::open(&address)?;
        if let Some(export) = &started.export {
            runtime.block_on(export.unpack(&model_dir))?;
        }
        let (generation, restored) = runtime.block_on(prepare(&model_dir, &job, &progress))?;
        let loading = runtime.block_on(begin_with(&job, restored.as_ref(), &progress))?;
        let log_dir = log_dir(&job, &model_dir, generation)?;
        let session = tfos_data::session::session().enable_url_table();
        application.register(&session)?;
        let token = token(&job, &log_dir, &progress)?;
        let (notes_tx, mut lines) = tokio::sync::mpsc::unbounded_channel::<String>();
        let saying = progress.clone();
        let notes = runtime.spawn(async move {
            while let Some(line) = lines.recv().await {
                saying.say(&line);
            }
        });
        let options = DriverOptions {
            token: token.clone(),
            generation,
            model_dir: model_dir.clone(),
            log_dir: log_dir.clone(),
            scratch_dir: format!("{}/job/inference", model_dir.url().as_str().trim_end_matches('/')),
            restored: restored.as_ref().map(|r| (r.manifest.global_step, r.manifest.ledger.clone())),
            version: env!("CARGO_PKG_VERSION").into(),
            notes: notes_tx,
            job: job.clone(),
        };
        let launcher: Box<dyn Launcher> = match job.master {
            Master::Local => Box::new(local(&job)?),
            Master::Standalone => Box::new(Standalone),
        };
        let driver = runtime.block_on(Driver::start(options, launcher))?;
        let _ = running.set((driver.interrupter(), driver.status()));
        if job.master == Master::Standalone {
            let file = job.token_file.clone().unwrap_or_else(|| log_dir.join("token").display().to_string());
            progress.say(&format!(
                "waiting for {} executors; start each with: tfos executor --driver {} --token-file {file}",
                job.shape.cluster_size,
                driver.url()
            ));
        }
        Ok(Self {
            runtime,
            session,
            driver: Some(driver),
            job,
            application,
            model_dir,
            generation,
            log_dir,
            restored,
            loading,
            notes: Some(notes),
            trained: false,
            arguments: "{}".into(),
            named: vec![],
            shuffle: None,
            report: Report::default(),
            progress,
            scheduler: Default::default(),
            begun,
            _temporary: temporary,
        })
    }

    /// The application's main function, with this cluster.
    pub(crate) fn run(&mut self, arguments: &[String]) -> Result<()> {
        let application = Arc::clone(&self.application);
        application.main(self, arguments)
    }

    /// Stops and reaps every executor.
    pub(crate) fn stop(&mut self, reason: &str) -> Ended {
        let newest = self.driver.as_ref().and_then(Driver::stored).map(|s| s.manifest.clone());
        let newest = newest.or_else(|| self.restored.as_ref().map(|r| r.manifest.clone()));
        let checkpoint =
            self.driver.as_ref().and_then(Driver::stored).map(|s| (s.path.clone(), s.manifest.global_step.0));
        let restored = self.restored.as_ref().map(|r| (r.path.clone(), r.manifest.global_step.0));
        if let Some(driver) = self.driver.take() {
            self.runtime.block_on(driver.shutdown(reason));
        }
        if let Some(notes) = self.notes.take() {
            // Ends with the driver, which held the other end.
            let _ = self.runtime.block_on(notes);
        }
        self.scheduler = Default::default();
        self.progress.clear();
        let newest = newest.filter(|_| self.micro_batches().is_some());
        let digest = newest.and_then(|manifest| match self.block_on(digest(&self.model_dir(), &manifest)) {
            Ok(digest) => Some(digest),
            Err(e) => {
                self.progress.say(&format!("the last checkpoint cannot be read again: {e}"));
                None
            }
        });
        Ended {
            report: std::mem::take(&mut self.report),
            generation: self.generation.0,
            checkpoint: checkpoint.or(restored),
            digest,
            kept: self._temporary.is_none(),
            model_dir: self.model_dir.local_path().map_or_else(|| self.model_dir(), |p| p.display().to_string()),
        }
    }

    /// Folder of the nodes' logs.
    pub fn log_dir(&self) -> &std::path::Path {
        &self.log_dir
    }
}

/// First Ctrl-C: finish the batch, checkpoint, stop. Second, or before the cluster is formed: stop now; the kernel
/// kills the executors with the process that forked them.
struct Interrupts {
    driver: Arc<OnceLock<(Interrupter, watch::Receiver<Status>)>>,
    progress: Progress,
    temporary: Option<PathBuf>,
    on_abort: fn(),
}

impl Interrupts {
    async fn listen(self) {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let mut drained = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match self.driver.get() {
                Some((driver, status)) if !drained && status.borrow().stage != "forming" => {
                    drained = true;
                    self.progress
                        .say("interrupted: finishing the batch and writing a checkpoint; again to stop at once");
                    driver.drain();
                }
                _ => {
                    self.progress.clear();
                    self.progress.say("stopped");
                    if let Some(dir) = &self.temporary {
                        // Exiting runs no destructor; what cannot be removed is in the system's folder for that.
                        let _ = std::fs::remove_dir_all(dir);
                    }
                    (self.on_abort)();
                    std::process::exit(130);
                }
            }
        }
    }
}

async fn prepare(dir: &ModelDir, job: &Job, progress: &Progress) -> Result<(Generation, Option<Restored>)> {
    dir.probe().await?;
    // Claimed first: from here on no older driver can commit a checkpoint behind the one that is found.
    let generation = dir.claim_generation(&serde_json::to_string(job).unwrap_or_default()).await?;
    let (restored, target) = dir.find_checkpoint().await?;
    for skipped in &target.skipped {
        progress.say(&format!(
            "checkpoint {} is damaged and is passed over: {}",
            skipped.step,
            skipped.damage.as_deref().unwrap_or("unreadable")
        ));
    }
    // Nothing is moved or deleted before it is certain that no newer driver has come.
    dir.begin(generation, restored.as_ref()).await?;
    dir.set_aside(&target.skipped, generation).await?;
    let lineage = restored.as_ref().map(|r| r.manifest.ledger.clone()).unwrap_or_default();
    dir.remove_orphans(&lineage, generation).await?;
    Ok((generation, restored))
}

/// What the first phase loads: the job's own checkpoint if there is one, else what it is to start from.
async fn begin_with(job: &Job, restored: Option<&Restored>, progress: &Progress) -> Result<Option<Loading>> {
    match (restored, &job.restore.init_from) {
        (Some(own), from) => {
            if let Some(url) = from {
                let step = own.manifest.global_step;
                progress
                    .say(&format!("--init-from {url} is ignored: the model directory has a checkpoint at step {step}"));
            }
            Ok(Some(job.restore.resume(&own.path)))
        }
        (None, Some(url)) => {
            let loading = super::warm::find(url, &job.restore, progress).await?;
            progress.say(&format!("starting at step 0 with the parameters of {loading}"));
            Ok(Some(loading))
        }
        (None, None) => Ok(None),
    }
}

fn log_dir(job: &Job, model_dir: &ModelDir, generation: Generation) -> Result<PathBuf> {
    let folder = match (&job.log_dir, model_dir.local_path()) {
        (LogDir::Given(path), _) => PathBuf::from(path),
        (LogDir::Default, Some(local)) => local.join("job").join("logs").join(format!("g{generation}")),
        (LogDir::Default, None) => std::env::temp_dir().join(format!("tfos-logs-{}", std::process::id())),
    };
    std::fs::create_dir_all(&folder).map_err(system(format!("create the log folder `{}`", folder.display())))?;
    Ok(folder)
}

/// The job's token: from the file that the user named, or a new one, which is written where the user said, or
/// beside the logs for executors that somebody else starts.
fn token(job: &Job, log_dir: &std::path::Path, progress: &Progress) -> Result<String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = match (&job.token_file, job.master) {
        (Some(path), _) => Some(PathBuf::from(path)),
        (None, Master::Standalone) => Some(log_dir.join("token")),
        (None, Master::Local) => None,
    };
    if let Some(path) = &path
        && let Ok(text) = std::fs::read_to_string(path)
    {
        let token = text.trim().to_owned();
        if token.len() < 16 {
            return Err(Error::Usage(format!(
                "the token in `{}` is too short; delete the file to get a new one, or write 16 characters or more",
                path.display()
            )));
        }
        return Ok(token);
    }
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    if let Some(path) = &path {
        let failed = || system(format!("write the token file `{}`", path.display()));
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.map_err(failed())?.write_all(token.as_bytes()).map_err(failed())?;
        progress.say(&format!("wrote the job's token to {}", path.display()));
    }
    Ok(token)
}

fn local(job: &Job) -> Result<Local> {
    let program = std::env::current_exe().map_err(system("find this program's own file".into()))?;
    let gpus = job.shape.nodes().iter().map(|n| if n.role == crate::Role::Ps { 0 } else { job.num_gpus }).collect();
    // The machine's cores are shared by those that compute.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / job.shape.num_trainers().max(1) as usize).max(1);
    let mut launcher = Local::new(program, vec![], gpus, job.executor_ports.to_string());
    launcher.threads = threads;
    launcher.trainers = job.shape.num_trainers();
    Ok(launcher)
}
