//! The flags of `tfos data`.

use clap::{Args, Subcommand};

use super::Output;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DataCommand {
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
pub(in crate::cli) struct ConvertFlags {
    /// Files to read, any object-store URL; for idx a local path, the part before `-images-idx3-ubyte`.
    pub(in crate::cli) from: String,
    /// File or folder (with `/` at its end) to write, any object-store URL.
    pub(in crate::cli) to: String,
    /// Format of FROM [default: by its name].
    #[arg(long)]
    pub(in crate::cli) from_format: Option<String>,
    /// Format of TO [default: by its name].
    #[arg(long)]
    pub(in crate::cli) to_format: Option<String>,
    /// Schema of FROM, such as `image:binary,label:int64`.
    #[arg(long)]
    pub(in crate::cli) schema: Option<String>,
    /// Begin a new file after so many rows.
    #[arg(long)]
    pub(in crate::cli) rows_per_file: Option<usize>,
    /// Divide the rows into so many files.
    #[arg(long)]
    pub(in crate::cli) num_files: Option<usize>,
    /// Compress: none, gzip or zlib.
    #[arg(long, default_value = "none")]
    pub(in crate::cli) compression: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(in crate::cli) output: Output,
}
