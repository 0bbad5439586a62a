//! The flags, as clap reads them. Every flag of `submit` is also a key of `job.yaml`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tfos_core::config::{ByteSize, Period, RawJob};
use tfos_core::ports::PortRange;

/// Deep learning inside a DataFusion cluster.
#[derive(Debug, Parser)]
#[command(name = "tfos", version, about, propagate_version = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run an application on a cluster.
    Submit(Box<SubmitFlags>),
    /// Be an executor of a job whose driver runs elsewhere (or is about to).
    Executor(ExecutorFlags),
    /// List the built-in applications.
    Apps {
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Convert and describe data files.
    #[command(subcommand)]
    Data(DataCommand),
    /// Prove from a model directory's ledger that each row of each finished epoch was applied exactly once.
    VerifyLedger {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// List, show, verify, delete, copy and compare the checkpoints of a model directory; clean it up.
    ///
    /// The model directory may stand before the command or after it: `tfos checkpoints DIR list`, `tfos checkpoints list
    /// DIR`.
    #[command(override_usage = "tfos checkpoints [OPTIONS] [MODEL_DIR] <COMMAND> [MODEL_DIR] [ARGUMENTS]")]
    Checkpoints {
        #[command(subcommand)]
        command: CheckpointCommand,
        /// How to print.
        #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Write the model of a checkpoint as files that PyTorch and `tfos predict` read.
    Export(ExportFlags),
    /// Predict rows with an exported model, on executors of this machine.
    Predict(Box<PredictFlags>),
    /// Make weights, such as PyTorch's state_dict in a safetensors file, the start of training in a new model directory.
    Import(ImportFlags),
    /// Query a model directory with SQL: tables `steps`, `samples` (which rows were in which step), `metrics`, `events`;
    /// `rows_of(17)` is the rows of step 17 themselves; `SHOW TABLES` and `DESCRIBE steps` tell more.
    Sql {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Such as 'SELECT epoch, avg(loss) FROM steps GROUP BY epoch'. Names of columns that are words of SQL go in
        /// quotes: "partition".
        query: String,
        /// How to print: a table, or one JSON object a line.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Print a completion script.
    Completions {
        /// For this shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// True when every end of the command is to be one JSON object on stdout.
    pub(super) fn reports_json(&self) -> bool {
        let output = match self {
            Self::Submit(flags) => flags.output,
            Self::Apps { output } | Self::VerifyLedger { output, .. } => *output,
            Self::Data(DataCommand::Convert(flags)) => flags.output,
            Self::Data(DataCommand::Describe { output, .. }) => *output,
            Self::Checkpoints { output, .. } | Self::Sql { output, .. } => *output,
            Self::Import(flags) => flags.output,
            Self::Export(flags) => flags.output,
            Self::Predict(flags) => flags.summary,
            Self::Executor(_) | Self::Completions { .. } => Output::Text,
        };
        output == Output::Json
    }
}

#[derive(Debug, Args)]
pub(super) struct ExportFlags {
    /// Model directory, any object-store URL.
    pub(super) model_dir: String,
    /// Step of the checkpoint [default: the newest one that is whole].
    #[arg(long)]
    pub(super) step: Option<u64>,
    /// Folder to write, any object-store URL; an export that is there is replaced [default: MODEL_DIR/export].
    #[arg(long, value_name = "URL")]
    pub(super) to: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
pub(super) struct PredictFlags {
    /// Folder that `tfos export` wrote, any object-store URL.
    pub(super) export: String,
    /// Rows: a file, a directory, a glob, or several of these with commas between them; any object-store URL.
    #[arg(long, value_name = "URL")]
    pub(super) data: String,
    /// Format of the rows [default: by the file names].
    #[arg(long)]
    pub(super) format: Option<String>,
    /// Schema of the rows, such as `image:binary` [default: inferred].
    #[arg(long)]
    pub(super) schema: Option<String>,
    /// Query over the table `data` that gives the rows.
    #[arg(long, value_name = "QUERY")]
    pub(super) sql: Option<String>,
    /// File to write, or folder with `/` at its end: the rows in their order, with the predictions; any object-store URL.
    #[arg(long, value_name = "FILE")]
    pub(super) output: String,
    /// Format of the output [default: by its name].
    #[arg(long, value_name = "FORMAT")]
    pub(super) output_format: Option<String>,
    /// Begin a new file after so many rows.
    #[arg(long)]
    pub(super) rows_per_file: Option<usize>,
    /// Executors, each with a node that predicts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) cluster_size: u32,
    /// GPUs for each of them [default: 0].
    #[arg(long, value_name = "G")]
    pub(super) num_gpus: Option<u32>,
    /// Bound of the feed queue of an executor [default: 256MiB].
    #[arg(long, value_name = "BYTES")]
    pub(super) feed_memory: Option<ByteSize>,
    /// How to print what was written.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) summary: Output,
    /// No progress.
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportFlags {
    /// File of weights in safetensors format, any object-store URL.
    pub(super) weights: String,
    /// Model directory in which no job has run, any object-store URL.
    pub(super) model_dir: String,
    /// Application whose model it is; a job of it, with --model-dir, starts from the weights.
    #[arg(long, value_name = "NAME")]
    pub(super) application: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    /// Arguments of the application that say what its model is, after `--`; for an export before any training.
    #[arg(last = true)]
    pub(super) arguments: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    /// Every checkpoint: step, generation, age, size, rows.
    List {
        /// Model directory, any object-store URL.
        model_dir: String,
    },
    /// One checkpoint: variables, optimizer, rows, files.
    Show {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Its step [default: the newest].
        step: Option<u64>,
    },
    /// Read every byte and compare sizes and checksums; exit code 1 when something is damaged.
    Verify {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Only this step [default: all].
        step: Option<u64>,
    },
    /// Checksums of what a checkpoint holds: equal for equal bits, however many files it is in.
    Hash {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Its step [default: the newest].
        step: Option<u64>,
    },
    /// Delete one checkpoint.
    Delete {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Its step.
        step: u64,
    },
    /// Delete what belongs to no checkpoint: parts and ledger segments that no manifest names. A running job's are left.
    Gc {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Only list what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy one checkpoint, and the ledger that led to it, into a new model directory.
    Copy {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// Its step.
        step: u64,
        /// The new model directory, any object-store URL.
        to: String,
    },
    /// Compare the values of two checkpoints, variable by variable.
    Diff {
        /// Model directory, any object-store URL.
        model_dir: String,
        /// The first step.
        first: u64,
        /// The second step.
        second: u64,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For machines: the last line of stdout is one JSON object.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct SubmitFlags {
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
    /// Aggregate the gradients of the workers before each update [default: asynchronous].
    #[arg(long)]
    sync_replicas: bool,
    /// Gradients per update; fewer than the workers makes the rest backups [default: all].
    #[arg(long, value_name = "R")]
    replicas_to_aggregate: Option<u32>,
    /// Asynchronous, but no training node is more than so many of its own steps ahead of the slowest one that has rows.
    #[arg(long, value_name = "S")]
    max_staleness: Option<u32>,
    /// The same parameters, bit by bit, in every run: for any number of workers and ps, and after a resume. CPU only.
    #[arg(long)]
    deterministic: bool,
    /// Batches of which the gradients make one update in deterministic training [default: 8].
    #[arg(long, value_name = "M")]
    micro_batches: Option<u32>,
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
    pub(super) config: Option<PathBuf>,
    /// Print the cluster that would be formed, and start nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    /// No progress.
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Name of a built-in application (`tfos apps`) or path of a program built on tfos.
    application: Option<String>,
    /// Arguments of the application, after `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl SubmitFlags {
    /// What was written on the command line.
    pub(super) fn raw(&self) -> RawJob {
        let on = |flag: bool| flag.then_some(true);
        RawJob {
            master: self.master.clone(),
            cluster_size: self.cluster_size,
            num_ps: self.num_ps,
            num_gpus: self.num_gpus,
            evaluator: on(self.evaluator),
            sync_replicas: on(self.sync_replicas),
            replicas_to_aggregate: self.replicas_to_aggregate,
            max_staleness: self.max_staleness,
            deterministic: on(self.deterministic),
            micro_batches: self.micro_batches,
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

#[derive(Debug, Args)]
pub(super) struct ExecutorFlags {
    /// URL of the driver, as it prints it.
    #[arg(long, value_name = "URL")]
    pub(super) driver: String,
    /// File with the job's token [or TFOS_TOKEN in the environment].
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Place in the cluster [default: any free one].
    #[arg(long, value_name = "N")]
    pub(super) executor_id: Option<u32>,
    /// n-th try of that place; a newer one replaces an older one.
    #[arg(long, default_value_t = 0)]
    pub(super) attempt: u32,
    /// GPUs to lease.
    #[arg(long, default_value_t = 0)]
    pub(super) num_gpus: usize,
    /// Address to bind.
    #[arg(long, default_value = "0.0.0.0")]
    pub(super) bind: String,
    /// Host under which other nodes reach this one [default: where the driver sees it call from].
    #[arg(long)]
    pub(super) advertise: Option<String>,
    /// Port or range of ports to bind [default: any].
    #[arg(long, alias = "port", default_value = "0")]
    pub(super) ports: PortRange,
    /// Threads for computing [default: all cores].
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// How long to try to reach the driver.
    #[arg(long, default_value = "60")]
    pub(super) connect_timeout: Period,
    /// Where this process's log goes, for messages; set by the local launcher.
    #[arg(long, hide = true)]
    pub(super) log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Convert between idx (MNIST's files), csv, ndjson, parquet, arrow, avro and tfrecord; to and from object stores.
    Convert(ConvertFlags),
    /// Print schema, files and rows.
    Describe {
        /// A file, a directory, a glob, or several of these with commas between them; any object-store URL.
        url: String,
        /// Format [default: by the file names].
        #[arg(long)]
        format: Option<String>,
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct ConvertFlags {
    /// Files to read, any object-store URL; for idx a local path, the part before `-images-idx3-ubyte`.
    pub(super) from: String,
    /// File or folder (with `/` at its end) to write, any object-store URL.
    pub(super) to: String,
    /// Format of FROM [default: by its name].
    #[arg(long)]
    pub(super) from_format: Option<String>,
    /// Format of TO [default: by its name].
    #[arg(long)]
    pub(super) to_format: Option<String>,
    /// Schema of FROM, such as `image:binary,label:int64`.
    #[arg(long)]
    pub(super) schema: Option<String>,
    /// Begin a new file after so many rows.
    #[arg(long)]
    pub(super) rows_per_file: Option<usize>,
    /// Divide the rows into so many files.
    #[arg(long)]
    pub(super) num_files: Option<usize>,
    /// Compress: none, gzip or zlib.
    #[arg(long, default_value = "none")]
    pub(super) compression: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
}
