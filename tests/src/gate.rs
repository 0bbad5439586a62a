//! A gate in which a node of `probe_app` stands still until the test opens it: a named pipe, whose reader sleeps in
//! the kernel until there is a writer. So a test kills a job in the middle of an epoch, and not shortly after it.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::{Running, wait};

/// See the module's text.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    open: Option<File>,
}

impl Gate {
    /// A closed gate.
    pub fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a named pipe can be created");
        Self { path, open: None }
    }

    /// Arguments for `probe_app`: stand still in front of unit `at` (a batch or a step) of the node.
    pub fn arguments(&self, at: u64) -> Vec<String> {
        vec![format!("gate={}", self.path.display()), format!("gate-at={at}")]
    }

    /// Waits until the trainers of these numbers stand in front of it; the job has to live.
    pub fn reached(&self, running: &mut Running, trainers: &[u32]) {
        for trainer in trainers {
            let arrived = wait::until(&format!("trainer {trainer} at the gate"), wait::secs(60), || {
                self.has(*trainer).then_some(true).or_else(|| (!running.is_running()).then_some(false))
            });
            assert!(arrived, "the job ended before trainer {trainer} came to the gate");
        }
    }

    /// True once the trainer has come to it.
    pub fn has(&self, trainer: u32) -> bool {
        Path::new(&format!("{}.reached-{trainer}", self.path.display())).exists()
    }

    /// Opens it for good.
    pub fn open(&mut self) {
        let both = OpenOptions::new().read(true).write(true).open(&self.path);
        self.open = Some(both.expect("the named pipe can be opened"));
    }
}
