//! `tfos data`: conversion and description.
#![expect(clippy::print_stdout, reason = "results go to stdout")]
#![expect(clippy::print_stderr, reason = "warnings go to stderr")]

use tfos_data::convert::{ConvertOptions, convert, describe};
use tfos_data::session::Format;

use super::flags::{ConvertFlags, DataCommand, Output};
use crate::{Error, Result};

pub(super) fn run(command: DataCommand) -> Result<u8> {
    super::init_logs("warn");
    let runtime = super::runtime()?;
    match command {
        DataCommand::Convert(flags) => runtime.block_on(run_convert(flags)),
        DataCommand::Describe { url, format, output } => {
            let format = runtime.block_on(format_of(&url, format.as_deref(), "--format"))?;
            let found = runtime.block_on(describe(&url, format))?;
            match output {
                Output::Json => println!("{}", serde_json::to_string(&found).unwrap_or_default()),
                Output::Text => {
                    println!("format  {}", found.format);
                    println!("rows    {}", found.rows);
                    println!("columns");
                    for c in &found.columns {
                        println!("  {}: {}{}", c.name, c.data_type, if c.nullable { "" } else { " not null" });
                    }
                    if let Some(schema) = &found.schema {
                        println!("schema  {schema}");
                    }
                    println!("files");
                    for f in &found.files {
                        println!("  {} ({} bytes)", f.path, f.bytes);
                    }
                }
            }
            Ok(0)
        }
    }
}

pub(super) async fn format_of(path: &str, given: Option<&str>, flag: &str) -> Result<Format> {
    let found = match given {
        Some(name) => Some(name.parse()?),
        // An idx prefix is no file itself.
        None if tfos_data::idx::files(path).is_ok() => Some(Format::Idx),
        None => tfos_data::session::format_of(path).await?,
    };
    found.ok_or_else(|| Error::Usage(format!("the format of `{path}` cannot be told from its name; give {flag}")))
}

async fn run_convert(flags: ConvertFlags) -> Result<u8> {
    let from_format = format_of(&flags.from, flags.from_format.as_deref(), "--from-format").await?;
    let to_format = match flags.to_format.as_deref() {
        Some(name) => name.parse()?,
        None => Format::from_path(&flags.to).ok_or_else(|| {
            Error::Usage(format!("the format of `{}` cannot be told from its name; give --to-format", flags.to))
        })?,
    };
    let options = ConvertOptions {
        rows_per_file: flags.rows_per_file,
        num_files: flags.num_files,
        compression: flags.compression.parse()?,
        schema: flags.schema,
    };
    let done = convert(&flags.from, from_format, &flags.to, to_format, &options).await?;
    for warning in &done.warnings {
        eprintln!("warning: {warning}");
    }
    match flags.output {
        Output::Json => println!("{}", serde_json::to_string(&done).unwrap_or_default()),
        Output::Text => {
            println!("{} rows", done.rows);
            for f in &done.files {
                println!("{} ({} bytes)", f.path, f.bytes);
            }
        }
    }
    Ok(0)
}
