//! `tfos submit`: settings, dry run, the job, its summary.

use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::time::Instant;

use tfos_core::config::{ConfigError, Job, Problem, RawJob};

use super::flags::{Output, SubmitFlags};
use super::output;
use super::placement::Placed;
use crate::application::Stop;
use crate::cluster::Started;
use crate::{Application, Cluster, Error, Result};

/// Carries settings to a program that `tfos submit` runs in its own place.
const JOB_VARIABLE: &str = "TFOS_JOB";

pub(super) fn submit(flags: SubmitFlags, applications: &[Arc<dyn Application>]) -> Result<u8> {
    super::init_logs("warn");
    let mut raw = flags.raw();
    if let Some(path) = &flags.config {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("--config {}: {e}", path.display())))?;
        raw = raw.over(RawJob::from_yaml(&path.display().to_string(), &text)?);
    }
    let handed_over = std::env::var(JOB_VARIABLE).ok();
    if let Some(text) = &handed_over {
        raw = RawJob::from_yaml(JOB_VARIABLE, text)?;
    }
    // A program with one application needs no name.
    if let ([only], None) = (applications, &raw.application) {
        raw.application = Some(only.name().to_owned());
    }
    let job = Job::check(raw.clone())?;
    // Into the environment, from where stores, executors and a program in this one's place take them, and not further.
    if let Some(storage) = &raw.storage {
        for (name, value) in storage.variables().filter(|(name, _)| std::env::var_os(name).is_none()) {
            // SAFETY: this process has one thread yet.
            #[expect(unsafe_code, reason = "the clients of stores read the environment")]
            unsafe {
                std::env::set_var(name, value);
            }
        }
    }
    let found = super::find(applications, &job.application)
        .or_else(|| applications.first().filter(|_| handed_over.is_some() && applications.len() == 1));
    match found {
        Some(application) => {
            let job = Job { application: application.name().to_owned(), ..job };
            run_job(job, application, &flags)
        }
        None => hand_over(raw, &job.application, &flags, applications),
    }
}

/// The application is another program: it takes this process's place, with the settings in its environment.
fn hand_over(mut raw: RawJob, program: &str, flags: &SubmitFlags, applications: &[Arc<dyn Application>]) -> Result<u8> {
    if !std::path::Path::new(program).is_file() {
        let names: Vec<&str> = applications.iter().map(|a| a.name()).collect();
        let message = format!("`{program}` is neither a built-in application ({}) nor a program", names.join(", "));
        let problems = vec![Problem::new("APPLICATION", message)];
        return Err(ConfigError { source_name: None, problems }.into());
    }
    raw.application = None;
    let yaml = RawJob { application: Some(program.to_owned()), ..raw }.to_yaml();
    let yaml = yaml.map_err(|e| Error::Usage(format!("the settings cannot be handed over: {e}")))?;
    let path = std::path::Path::new(program).canonicalize();
    let path = path.map_err(|source| Error::System { what: format!("find `{program}`"), source })?;
    let mut command = std::process::Command::new(path);
    command.arg("submit").env(JOB_VARIABLE, yaml);
    command.args(["--output", if flags.output == Output::Json { "json" } else { "text" }]);
    command.args(flags.dry_run.then_some("--dry-run")).args(flags.quiet.then_some("--quiet"));
    let source = command.exec();
    Err(Error::System { what: format!("run `{program}`"), source })
}

/// A program of one application, started without `submit`: one ps, chief and worker on this machine.
pub(super) fn run_alone(application: &Arc<dyn Application>, arguments: Vec<String>) -> Result<u8> {
    super::init_logs("warn");
    let job = Job::check(RawJob {
        cluster_size: Some(3),
        num_ps: Some(1),
        application: Some(application.name().to_owned()),
        arguments: Some(arguments),
        ..RawJob::default()
    })?;
    if let Some(code) = check(&job, application)? {
        return Ok(code);
    }
    execute(job, application, false, Output::Text)
}

#[expect(clippy::print_stdout, reason = "help that the user asked for")]
fn check(job: &Job, application: &Arc<dyn Application>) -> Result<Option<u8>> {
    match application.check(&job.arguments) {
        Ok(()) => Ok(None),
        Err(Stop::Help(text)) => {
            println!("{text}");
            Ok(Some(0))
        }
        Err(Stop::Usage(text)) => Err(Error::Usage(text)),
    }
}

fn run_job(job: Job, application: &Arc<dyn Application>, flags: &SubmitFlags) -> Result<u8> {
    if let Some(code) = check(&job, application)? {
        return Ok(code);
    }
    if flags.dry_run {
        output::dry_run(&job, &Placed::of(&job, application)?, flags.output);
        return Ok(0);
    }
    execute(job, application, flags.quiet, flags.output)
}

fn execute(job: Job, application: &Arc<dyn Application>, quiet: bool, format: Output) -> Result<u8> {
    let begun = Instant::now();
    let arguments = job.arguments.clone();
    let name = application.name().to_owned();
    let on_abort = if format == Output::Json { output::aborted } else { || {} };
    let started = Cluster::start(job, Arc::clone(application), Started { quiet, on_abort, export: None });
    let (result, ended) = match started {
        Ok(mut cluster) => {
            let result = cluster.run(&arguments);
            let reason = if result.is_ok() { "the job is done" } else { "the job failed" };
            (result, Some(cluster.stop(reason)))
        }
        Err(e) => (Err(e), None),
    };
    let wall = begun.elapsed().as_secs_f64();
    output::summary(&name, &result, ended.as_ref(), wall, format);
    match result {
        Ok(()) => Ok(0),
        // The summary was the one object on stdout.
        Err(error) => Ok(super::complain(&error)),
    }
}
