//! A process that serves a store to a test: in a group of its own, ended with the test, and by the kernel when the
//! test's thread is gone.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::{Submit, bin};

/// A store that is served.
pub trait Store {
    /// Address of a path in it.
    fn url(&self, path: &str) -> String;

    /// Tells a command where the server is and what its keys are.
    fn known_to(&self, submit: Submit) -> Submit;

    /// Scheme of its addresses.
    fn name(&self) -> &'static str;
}

/// A running server, killed and reaped when dropped.
#[derive(Debug)]
pub struct Server(pub(crate) Child);

impl Server {
    /// Starts it with stdout and stderr in `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let log = File::create(log).expect("a log for the server");
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a log")).stderr(log).process_group(0);
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        #[expect(unsafe_code, reason = "the death signal has to be set in the child before exec")]
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        Self(command.spawn().expect("the server starts"))
    }

    /// Ends the test if the process has ended.
    pub(crate) fn assert_runs(&mut self, log: &Path) {
        let ended = self.0.try_wait().expect("a child can be waited for");
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(ended.is_none(), "the server ended with {ended:?}: {}", said());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `deploy/setup FLAG` makes at `path` below `.tools`; `None`, said aloud, where it has not been.
/// `TFOS_REQUIRE_SERVERS=1` makes that a failure.
#[expect(clippy::print_stderr, reason = "a check that was not made has to be seen")]
pub(crate) fn tool(path: &str, flag: &str) -> Option<PathBuf> {
    let tool = bin::repository().join(".tools").join(path);
    if tool.exists() {
        return Some(tool);
    }
    let required = std::env::var("TFOS_REQUIRE_SERVERS").is_ok_and(|v| v == "1");
    assert!(!required, "servers are required and {} is not there: deploy/setup {flag}", tool.display());
    eprintln!("SKIPPED: {} is not there; deploy/setup {flag} makes it", tool.display());
    None
}
