//! The flags, as clap reads them. Every flag of `submit` is also a key of `job.yaml`.

mod data;
mod model;
mod submit;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tfos_core::config::Period;
use tfos_core::ports::PortRange;

pub(super) use self::data::{ConvertFlags, DataCommand};
pub(super) use self::model::{CheckpointCommand, ExportFlags, ImportFlags, PredictFlags};
pub(super) use self::submit::SubmitFlags;

/// Deep learning inside a DataFusion cluster.
#[derive(Debug, Parser)]
#[command(name = "tfos", version, about, propagate_version = true)]
pub(in crate::cli) struct Cli {
    #[command(subcommand)]
    pub(in crate::cli) command: Command,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
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
    /// Change a setting of a job while it runs; it holds until the job ends.
    Set {
        /// The job's model directory, any object-store URL.
        job: String,
        /// Such as consistency=ssp:4; see --consistency of submit.
        #[arg(value_name = "SETTING=VALUE")]
        setting: String,
        /// How long to wait for the job's answer.
        #[arg(long, value_name = "T", default_value = "15")]
        timeout: Period,
        /// How to print.
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
    pub(in crate::cli) fn reports_json(&self) -> bool {
        let output = match self {
            Self::Submit(flags) => flags.output,
            Self::Apps { output } | Self::VerifyLedger { output, .. } => *output,
            Self::Data(DataCommand::Convert(flags)) => flags.output,
            Self::Data(DataCommand::Describe { output, .. }) => *output,
            Self::Checkpoints { output, .. } | Self::Sql { output, .. } | Self::Set { output, .. } => *output,
            Self::Import(flags) => flags.output,
            Self::Export(flags) => flags.output,
            Self::Predict(flags) => flags.summary,
            Self::Executor(_) | Self::Completions { .. } => Output::Text,
        };
        output == Output::Json
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Output {
    /// For people.
    Text,
    /// For machines: the last line of stdout is one JSON object.
    Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExecutorFlags {
    /// URL of the driver, as it prints it.
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) driver: String,
    /// File with the job's token [or TFOS_TOKEN in the environment].
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) token_file: Option<PathBuf>,
    /// Place in the cluster [default: any free one].
    #[arg(long, value_name = "N")]
    pub(in crate::cli) executor_id: Option<u32>,
    /// n-th try of that place; a newer one replaces an older one.
    #[arg(long, default_value_t = 0)]
    pub(in crate::cli) attempt: u32,
    /// GPUs to lease.
    #[arg(long, default_value_t = 0)]
    pub(in crate::cli) num_gpus: usize,
    /// Address to bind.
    #[arg(long, default_value = "0.0.0.0")]
    pub(in crate::cli) bind: String,
    /// Host under which other nodes reach this one [default: where the driver sees it call from].
    #[arg(long)]
    pub(in crate::cli) advertise: Option<String>,
    /// Port or range of ports to bind [default: any].
    #[arg(long, alias = "port", default_value = "0")]
    pub(in crate::cli) ports: PortRange,
    /// Threads for computing [default: all cores].
    #[arg(long)]
    pub(in crate::cli) threads: Option<usize>,
    /// How long to try to reach the driver.
    #[arg(long, default_value = "60")]
    pub(in crate::cli) connect_timeout: Period,
    /// Where this process's log goes, for messages; set by the local launcher.
    #[arg(long, hide = true)]
    pub(in crate::cli) log: Option<String>,
}
