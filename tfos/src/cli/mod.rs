//! The command line: raw flags here, checked settings in `tfos_core::config`, and one place that turns a result
//! into an exit code.

mod checkpoints;
mod data;
mod executor;
mod export;
mod flags;
mod import;
mod ledger;
mod order;
mod output;
mod placement;
mod predict;
mod set;
mod sql;
mod submit;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};

use crate::{Application, Error, Result};
use flags::{Cli, Command};

/// The main function of a program that is one application. Started without `submit` it is a whole cluster on this
/// machine, and every argument is the application's.
pub fn run(application: impl Application) -> ExitCode {
    let application: Arc<dyn Application> = Arc::new(application);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let own = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect::<Vec<_>>();
    if arguments.first().is_some_and(|first| own.contains(first) || first == "--version") {
        return run_all(vec![application]);
    }
    finish(submit::run_alone(&application, arguments), false)
}

/// The main function of a program with several applications.
pub fn run_all(applications: Vec<Arc<dyn Application>>) -> ExitCode {
    // Long text only when it is asked for: libtorch has to look for devices.
    let version = std::env::args().any(|a| a == "--version" || a == "-V");
    let mut command = Cli::command();
    if version {
        command = command.version(output::long_version());
    }
    let cli = match command
        .try_get_matches_from(order::either(std::env::args_os()))
        .and_then(|m| Cli::from_arg_matches(&m))
    {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let json = cli.command.reports_json();
    finish(dispatch(cli, &applications), json)
}

fn dispatch(cli: Cli, applications: &[Arc<dyn Application>]) -> Result<u8> {
    match cli.command {
        Command::Submit(flags) => submit::submit(*flags, applications),
        Command::Executor(flags) => executor::run(flags, applications),
        Command::Apps { output } => output::apps(applications, output),
        Command::Data(command) => data::run(command),
        Command::VerifyLedger { model_dir, output } => ledger::verify(&model_dir, output),
        Command::Checkpoints { command, output } => checkpoints::run(command, output),
        Command::Export(flags) => export::run(&flags),
        Command::Predict(flags) => predict::run(*flags, applications),
        Command::Import(flags) => import::run(&flags, applications),
        Command::Sql { model_dir, query, output } => sql::run(&model_dir, &query, output, applications),
        Command::Set { job, setting, timeout, output } => set::run(&job, &setting, timeout.0, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tfos", &mut std::io::stdout());
            Ok(0)
        }
    }
}

fn finish(result: Result<u8>, json: bool) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if json {
                output::failed(&error);
            }
            ExitCode::from(complain(&error))
        }
    }
}

/// Shows an error, and gives its exit code.
#[expect(clippy::print_stderr, reason = "the one place where errors are shown")]
fn complain(error: &Error) -> u8 {
    eprintln!("error: {}", output::error_text(error));
    error.exit_code()
}

/// Logs of this process: warnings and worse for a command, everything of ours for an executor.
/// Libraries of which less is more: Ballista has a line for each task.
const CHATTY: &str = "hdfs_native=error,ballista_core=warn,ballista_executor=warn,ballista_scheduler=warn";

fn init_logs(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TFOS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{default},{CHATTY}")));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second initialisation in one process keeps the first.
    let _ = logs.try_init();
}

/// Application of that name.
fn find<'a>(applications: &'a [Arc<dyn Application>], name: &str) -> Option<&'a Arc<dyn Application>> {
    applications.iter().find(|a| a.name() == name)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|source| Error::System { what: "start threads".into(), source })
}
