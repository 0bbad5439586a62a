//! The flags of commands on models and checkpoints.

use clap::{Args, Subcommand};
use tfos_core::config::ByteSize;

use super::Output;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportFlags {
    /// Model directory, any object-store URL.
    pub(in crate::cli) model_dir: String,
    /// Step of the checkpoint [default: the newest one that is whole].
    #[arg(long)]
    pub(in crate::cli) step: Option<u64>,
    /// Folder to write, any object-store URL; an export that is there is replaced [default: MODEL_DIR/export].
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) to: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(in crate::cli) output: Output,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PredictFlags {
    /// Folder that `tfos export` wrote, any object-store URL.
    pub(in crate::cli) export: String,
    /// Rows: a file, a directory, a glob, or several of these with commas between them; any object-store URL.
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) data: String,
    /// Format of the rows [default: by the file names].
    #[arg(long)]
    pub(in crate::cli) format: Option<String>,
    /// Schema of the rows, such as `image:binary` [default: inferred].
    #[arg(long)]
    pub(in crate::cli) schema: Option<String>,
    /// Query over the table `data` that gives the rows.
    #[arg(long, value_name = "QUERY")]
    pub(in crate::cli) sql: Option<String>,
    /// File to write, or folder with `/` at its end: the rows in their order, with the predictions; any object-store URL.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) output: String,
    /// Format of the output [default: by its name].
    #[arg(long, value_name = "FORMAT")]
    pub(in crate::cli) output_format: Option<String>,
    /// Begin a new file after so many rows.
    #[arg(long)]
    pub(in crate::cli) rows_per_file: Option<usize>,
    /// Executors, each with a node that predicts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(in crate::cli) cluster_size: u32,
    /// GPUs for each of them [default: 0].
    #[arg(long, value_name = "G")]
    pub(in crate::cli) num_gpus: Option<u32>,
    /// Bound of the feed queue of an executor [default: 256MiB].
    #[arg(long, value_name = "BYTES")]
    pub(in crate::cli) feed_memory: Option<ByteSize>,
    /// How to print what was written.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(in crate::cli) summary: Output,
    /// No progress.
    #[arg(long, short)]
    pub(in crate::cli) quiet: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportFlags {
    /// File of weights in safetensors format, any object-store URL.
    pub(in crate::cli) weights: String,
    /// Model directory in which no job has run, any object-store URL.
    pub(in crate::cli) model_dir: String,
    /// Application whose model it is; a job of it, with --model-dir, starts from the weights.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) application: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(in crate::cli) output: Output,
    /// Arguments of the application that say what its model is, after `--`; for an export before any training.
    #[arg(last = true)]
    pub(in crate::cli) arguments: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CheckpointCommand {
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
