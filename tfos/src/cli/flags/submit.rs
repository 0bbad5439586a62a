//! The flags of `submit`: each is also a key of `job.yaml`.

use std::path::PathBuf;

use clap::Args;
use tfos_core::config::{ByteSize, Period, RawJob};
use tfos_core::ports::PortRange;

use super::Output;

#[derive(Debug, Args)]
pub(in crate::cli) struct SubmitFlags {
    /// How executors come to life: `local` starts them here, `standalone` waits for `tfos executor`.
    #[arg(long, value_name = "LAUNCHER")]
    master: Option<String>,
    /// Executors in all, one node each [default: what the other flags need].
    #[arg(long, value_name = "N")]
    cluster_size: Option<u32>,
    /// Parameter servers among them [default: 0].
    #[arg(long, value_name = "P")]
    num_ps: Option<u32>,
    /// GPUs for each chief, worker and evaluator; an error when they cannot be had [default: 0].
    #[arg(long, value_name = "G")]
    num_gpus: Option<u32>,
    /// One node scores every checkpoint on the input `eval`.
    #[arg(long)]
    evaluator: bool,
    /// When gradients become updates: sync (of all training nodes), sync:R (the first R of them), ssp:S (each by itself, nobody
    /// more than S steps ahead), async, or local-sgd:H (each node takes H steps alone, then they are averaged). By names of
    /// variables: 'embed.*=async,sync', the first that matches, the rest last [default: async].
    #[arg(long, value_name = "HOW")]
    consistency: Option<String>,
    /// The same as --consistency sync, or sync:R with --replicas-to-aggregate.
    #[arg(long)]
    sync_replicas: bool,
    /// Gradients per update; fewer than the workers makes the rest backups [default: all].
    #[arg(long, value_name = "R")]
    replicas_to_aggregate: Option<u32>,
    /// The same as --consistency ssp:S: no training node is more than so many of its own steps ahead of the slowest one
    /// that has rows.
    #[arg(long, value_name = "S")]
    max_staleness: Option<u32>,
    /// The same parameters, bit by bit, in every run: for any number of workers and ps, and after a resume. CPU only.
    #[arg(long)]
    deterministic: bool,
    /// Batches of which the gradients make one update in deterministic training [default: 8].
    #[arg(long, value_name = "M")]
    micro_batches: Option<u32>,
    /// How variables are dealt to the ps: even, which cuts all of them as one vector, or round-robin, whole in the order of
    /// their creation, as TensorFlow does [default: even].
    #[arg(long, value_name = "HOW")]
    placement: Option<String>,
    /// What carries gradients and parameters: auto, which is shared memory where both ends are on one host and TCP
    /// elsewhere, shared-memory, tcp, or grpc for where only HTTP/2 passes [default: auto].
    #[arg(long, value_name = "HOW")]
    transport: Option<String>,
    /// How gradients are sent: none, bf16 for half of the bytes, or topk:FRACTION for the largest ones only. What a step
    /// leaves out is added to the next one [default: none].
    #[arg(long, value_name = "HOW")]
    compress: Option<String>,
    /// Whether gradients are sent while the backward pass still runs: auto, which is for models of 4 MiB and more, on or
    /// off [default: auto].
    #[arg(long, value_name = "WHEN")]
    overlap: Option<String>,
    /// In what numbers products and convolutions are computed in training: f32, or bf16 while variables, optimizer and
    /// checkpoints stay f32 [default: f32].
    #[arg(long, value_name = "KIND")]
    precision: Option<String>,
    /// Copies of each parameter shard (not built in yet).
    #[arg(long, value_name = "K")]
    ps_replicas: Option<u32>,
    /// Where checkpoints and ledger go: a path or any object-store URL. A job submitted again on it resumes.
    #[arg(long, value_name = "URL")]
    model_dir: Option<String>,
    /// Time between checkpoints [default: 600].
    #[arg(long, value_name = "T")]
    save_checkpoints_secs: Option<Period>,
    /// Steps between checkpoints.
    #[arg(long, value_name = "K")]
    save_checkpoints_steps: Option<u64>,
    /// How many of the newest checkpoints stay [default: 5].
    #[arg(long, value_name = "M")]
    keep_checkpoints: Option<usize>,
    /// Stop the job when so many checkpoints in a row could not be written; before that training goes on [default: 5].
    #[arg(long, value_name = "N")]
    checkpoint_failure_limit: Option<u32>,
    /// Beside these, the first checkpoint at or after each multiple of so many steps stays.
    #[arg(long, value_name = "K")]
    keep_every: Option<u64>,
    /// Beside these, the best checkpoint by a metric of the evaluator stays: accuracy, or -loss where less is better.
    #[arg(long, value_name = "METRIC", allow_hyphen_values = true)]
    keep_best: Option<String>,
    /// What to take of the checkpoint when a job resumes: full, or parameters-only, with which the optimizer may be another
    /// one and its state begins fresh [default: full].
    #[arg(long, value_name = "HOW")]
    restore: Option<String>,
    /// Variables whose names have changed, as OLD=NEW or OLD.*=NEW.*, with commas between them or the flag repeated.
    #[arg(long, value_name = "OLD=NEW", value_delimiter = ',')]
    restore_map: Vec<String>,
    /// When the checkpoint lacks variables of the model or has others: error, or init, which keeps initial values, leaves
    /// out the others, and lists all [default: error].
    #[arg(long, value_name = "HOW")]
    restore_missing: Option<String>,
    /// Begin with the parameters of another model: a model directory, a manifest or a .safetensors file, any object-store
    /// URL. Ignored when --model-dir has a checkpoint.
    #[arg(long, value_name = "URL")]
    init_from: Option<String>,
    /// Who runs a query with an exchange (join, aggregate, window, sort, limit): datafusion, in the chief's executor, or
    /// ballista, in all that train [default: ballista when these are on several hosts].
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Stop at this global step.
    #[arg(long, value_name = "STEP")]
    max_steps: Option<u64>,
    /// Bound of what a node holds of its feed: queue, open partitions, the batch in hand [default: 256MiB].
    #[arg(long, value_name = "BYTES")]
    feed_memory: Option<ByteSize>,
    /// Time in which all executors have to register [default: 600].
    #[arg(long, value_name = "T")]
    reservation_timeout: Option<Period>,
    /// Silence after which an executor is lost [default: 30].
    #[arg(long, value_name = "T")]
    heartbeat_timeout: Option<Period>,
    /// Address on which the driver listens [default: loopback for local, all for standalone; TFOS_DRIVER_BIND].
    #[arg(long, value_name = "ADDRESS", env = "TFOS_DRIVER_BIND", hide_env = true)]
    bind: Option<String>,
    /// Host under which executors reach the driver [TFOS_DRIVER_HOST].
    #[arg(long, value_name = "HOST", env = "TFOS_DRIVER_HOST", hide_env = true)]
    advertise: Option<String>,
    /// Port of the driver, or a range to try [default: any; TFOS_DRIVER_PORT].
    #[arg(long, value_name = "PORTS", env = "TFOS_DRIVER_PORT", hide_env = true)]
    port: Option<PortRange>,
    /// Ports of the executors that `local` starts.
    #[arg(long, value_name = "PORTS")]
    executor_ports: Option<PortRange>,
    /// File with the job's token; written with a new one if it does not exist.
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Folder of the nodes' logs [default: job/logs in the model directory].
    #[arg(long, value_name = "DIR")]
    log_dir: Option<String>,
    /// TensorBoard event files (not built in yet).
    #[arg(long)]
    tensorboard: bool,
    /// Remote direct memory access (not built in yet).
    #[arg(long)]
    rdma: bool,
    /// Seed of everything random [default: 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Settings from a file; flags win.
    #[arg(long, value_name = "JOB.YAML")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Print the cluster that would be formed, and start nothing.
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(in crate::cli) output: Output,
    /// No progress.
    #[arg(long, short)]
    pub(in crate::cli) quiet: bool,
    /// Name of a built-in application (`tfos apps`) or path of a program built on tfos.
    application: Option<String>,
    /// Arguments of the application, after `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl SubmitFlags {
    /// What was written on the command line.
    pub(in crate::cli) fn raw(&self) -> RawJob {
        let on = |flag: bool| flag.then_some(true);
        RawJob {
            master: self.master.clone(),
            cluster_size: self.cluster_size,
            num_ps: self.num_ps,
            num_gpus: self.num_gpus,
            evaluator: on(self.evaluator),
            consistency: self.consistency.clone(),
            sync_replicas: on(self.sync_replicas),
            replicas_to_aggregate: self.replicas_to_aggregate,
            max_staleness: self.max_staleness,
            deterministic: on(self.deterministic),
            micro_batches: self.micro_batches,
            placement: self.placement.clone(),
            transport: self.transport.clone(),
            compress: self.compress.clone(),
            overlap: self.overlap.clone(),
            precision: self.precision.clone(),
            ps_replicas: self.ps_replicas,
            model_dir: self.model_dir.clone(),
            save_checkpoints_secs: self.save_checkpoints_secs,
            save_checkpoints_steps: self.save_checkpoints_steps,
            keep_checkpoints: self.keep_checkpoints,
            checkpoint_failure_limit: self.checkpoint_failure_limit,
            keep_every: self.keep_every,
            keep_best: self.keep_best.clone(),
            restore: self.restore.clone(),
            restore_map: (!self.restore_map.is_empty()).then(|| self.restore_map.clone()),
            restore_missing: self.restore_missing.clone(),
            init_from: self.init_from.clone(),
            engine: self.engine.clone(),
            max_steps: self.max_steps,
            feed_memory: self.feed_memory,
            reservation_timeout: self.reservation_timeout,
            heartbeat_timeout: self.heartbeat_timeout,
            bind: self.bind.clone(),
            advertise: self.advertise.clone(),
            port: self.port.clone(),
            executor_ports: self.executor_ports.clone(),
            token_file: self.token_file.clone(),
            log_dir: self.log_dir.clone(),
            // Keys on a command line are seen by everybody on the machine.
            storage: None,
            tensorboard: on(self.tensorboard),
            rdma: on(self.rdma),
            seed: self.seed,
            application: self.application.clone(),
            arguments: (!self.arguments.is_empty()).then(|| self.arguments.clone()),
        }
    }
}
