//! `tfos executor`: one node of somebody else's job.

use std::sync::Arc;

use tfos_executor::run::{ExecutorOptions, NodeFunction};
use tfos_executor::{NodeContext, devices};

use super::flags::ExecutorFlags;
use crate::{Application, Error, Result};

/// An application as the executor sees it.
struct Function(Arc<dyn Application>);

impl NodeFunction for Function {
    fn run(&self, context: &mut NodeContext) -> Result<(), tfos_executor::Error> {
        self.0.node(context)
    }

    fn register(&self, session: &tfos_data::SessionContext) -> Result<(), tfos_executor::Error> {
        self.0.register(session)
    }
}

pub(super) fn run(flags: ExecutorFlags, applications: &[Arc<dyn Application>]) -> Result<u8> {
    super::init_logs("info");
    tfos_executor::memory::keep_buffers();
    let token = match &flags.token_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| Error::Usage(format!("--token-file {}: {e}; copy it from the driver's host", path.display())))?
            .trim()
            .to_owned(),
        None => std::env::var("TFOS_TOKEN")
            .map_err(|_| Error::Usage("no token: give --token-file with the file that the driver wrote".into()))?,
    };
    // Before any other thread exists, and before GPUs are leased, which an agent must not hold.
    let agent = tfos_executor::agent::Agent::start();
    // Before any other thread exists: the environment may be changed only then.
    let gpus = devices::lease(&devices::inventory(), flags.num_gpus)?;
    // SAFETY: this process has one thread yet.
    #[expect(unsafe_code, reason = "libtorch reads CUDA_VISIBLE_DEVICES when it first looks for devices")]
    unsafe {
        std::env::set_var("CUDA_VISIBLE_DEVICES", gpus.visible().join(","));
    }
    #[cfg(feature = "torch")]
    if let Some(threads) = flags.threads {
        tfos_executor::torch::set_threads(threads);
    }
    let options = ExecutorOptions {
        driver: flags.driver,
        token,
        executor_id: flags.executor_id,
        attempt: flags.attempt,
        bind: flags.bind,
        advertise: flags.advertise,
        ports: flags.ports,
        gpus,
        log: flags.log.unwrap_or_default(),
        connect_timeout: flags.connect_timeout.0,
        version: env!("CARGO_PKG_VERSION").into(),
        agent: agent.clone(),
    };
    let applications = applications.to_vec();
    let registry = move |name: &str| -> Option<Arc<dyn NodeFunction>> {
        let found = super::find(&applications, name)?;
        Some(Arc::new(Function(Arc::clone(found))))
    };
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        // Ctrl-C in the terminal of a standalone executor, or an init system's stop.
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|source| Error::System { what: "listen for SIGTERM".into(), source })?;
        tokio::select! {
            done = tfos_executor::run(options, Arc::new(registry)) => done.map_err(Error::from),
            _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
            _ = terminate.recv() => Err(Error::Interrupted),
        }
    });
    // The node's own threads are not waited for: the driver has stopped caring about them.
    if let Err(error) = &result {
        tracing::error!("{}", super::output::error_text(error));
    }
    if let Some(agent) = agent {
        agent.stop();
    }
    let code = result.as_ref().err().map_or(0, Error::exit_code);
    std::process::exit(i32::from(code));
}
