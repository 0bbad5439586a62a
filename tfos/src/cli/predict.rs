//! `tfos predict`: an export's predictions for rows, on a cluster of this machine that needs no model directory.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::sync::Arc;

use serde_json::json;
use tfos_core::config::{Job, RawJob};
use tfos_data::convert::{ConvertOptions, Converted};
use tfos_data::session::Format;

use super::flags::{Output, PredictFlags};
use super::output;
use crate::cluster::{Prediction, Started};
use crate::portable::unpack::Export;
use crate::{Application, Cluster, Error, Result};

pub(super) fn run(flags: PredictFlags, applications: &[Arc<dyn Application>]) -> Result<u8> {
    super::init_logs("warn");
    let job = job(&flags)?;
    let (export, format) = super::runtime()?.block_on(async {
        let export = Export::open(&flags.export).await?;
        Ok::<_, Error>((export, super::data::format_of(&flags.data, flags.format.as_deref(), "--format").await?))
    })?;
    let application = application(&export, &flags, applications)?;
    let to_format = match flags.output_format.as_deref() {
        Some(name) => name.parse()?,
        None => Format::from_path(&flags.output).ok_or_else(|| {
            Error::Usage(format!("the format of `{}` cannot be told from its name; give --output-format", flags.output))
        })?,
    };
    let prediction = Prediction {
        data: flags.data.clone(),
        format,
        schema: flags.schema.clone(),
        sql: flags.sql.clone(),
        arguments: export.description.arguments.to_string(),
        output: flags.output.clone(),
        output_format: to_format,
        options: ConvertOptions { rows_per_file: flags.rows_per_file, ..ConvertOptions::default() },
    };
    let on_abort = if flags.summary == Output::Json { output::aborted } else { || {} };
    let started = Started { quiet: flags.quiet, on_abort, export: Some(export) };
    let mut cluster =
        Cluster::start(Job { application: application.name().to_owned(), ..job }, Arc::clone(application), started)?;
    let predicted = cluster.predict(prediction);
    cluster.stop(if predicted.is_ok() { "the predictions are written" } else { "the job failed" });
    say(&flags, &predicted?);
    Ok(0)
}

/// One node for each executor: nobody trains, so there is nothing for a ps to do.
fn job(flags: &PredictFlags) -> Result<Job> {
    if flags.cluster_size == 0 {
        return Err(Error::Usage("--cluster-size must be at least 1".into()));
    }
    let mut job = Job::check(RawJob {
        num_gpus: flags.num_gpus,
        feed_memory: flags.feed_memory,
        application: Some("predict".into()),
        ..RawJob::default()
    })?;
    job.shape.cluster_size = flags.cluster_size;
    Ok(job)
}

fn application<'a>(
    export: &Export,
    flags: &PredictFlags,
    applications: &'a [Arc<dyn Application>],
) -> Result<&'a Arc<dyn Application>> {
    let name = &export.description.application;
    let Some(application) = super::find(applications, name) else {
        let there = applications.iter().map(|a| a.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::Usage(format!(
            "`{}` is a model of the application `{name}`, and this program has {there}; run the program that has it: \
             PROGRAM predict …",
            flags.export
        )));
    };
    if export.description.arguments.is_null() {
        return Err(Error::Export {
            address: flags.export.clone(),
            what: "its weights were imported, and no job has told yet with which arguments their model is built; \
                   train first, or import with the arguments of the application"
                .into(),
        });
    }
    Ok(application)
}

fn say(flags: &PredictFlags, written: &Converted) {
    match flags.summary {
        Output::Json => {
            println!("{}", json!({"status": "ok", "rows": written.rows, "files": written.files}));
        }
        Output::Text => {
            println!("{} rows", written.rows);
            for file in &written.files {
                println!("{} ({} bytes)", file.path, file.bytes);
            }
        }
    }
}
