//! The room in which one test works: in a folder of its own, timed, cleaned up, and alone on this machine unless the test
//! does not mind how fast the machine is.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use crate::{Gate, Submit, bin, procs, wait};

/// See the module's text.
#[derive(Debug)]
pub struct Lab {
    name: &'static str,
    folder: TempDir,
    begun: Instant,
    // Let go last. Each lab opens the file anew, so its lock holds among threads as among processes.
    _machine: File,
}

fn lock_file() -> File {
    File::create(std::env::temp_dir().join("tfos-e2e.lock")).expect("a lock file can be created")
}

impl Lab {
    /// Waits for every other test of this machine that uses real processes.
    pub fn new(name: &'static str) -> Self {
        let machine = lock_file();
        machine.lock().expect("the lock file can be locked");
        Self::enter(name, machine)
    }

    /// For a test whose result does not depend on how fast things go: such tests run beside each other, as a job of a few
    /// steps waits for most of its time.
    pub fn shared(name: &'static str) -> Self {
        let machine = lock_file();
        machine.lock_shared().expect("the lock file can be locked");
        Self::enter(name, machine)
    }

    fn enter(name: &'static str, machine: File) -> Self {
        bin::tfos();
        let folder = tempfile::Builder::new().prefix("tfos-e2e-").tempdir().expect("a temporary folder");
        Self { name, folder, begun: Instant::now(), _machine: machine }
    }

    /// The test's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file can be written");
        path
    }

    /// The model directory that [`Self::submit`] and [`Self::probe`] use.
    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    /// A job of an application on [`Self::model`].
    pub fn submit(&self, application: &str) -> Submit {
        Submit::new(application).model_dir(&self.model())
    }

    /// A job of `probe_app` on [`Self::model`].
    pub fn probe(&self, arguments: &str) -> Submit {
        let program = bin::probe();
        Submit::new(&program.display().to_string()).model_dir(&self.model()).args(arguments)
    }

    /// A closed gate.
    pub fn gate(&self, name: &str) -> Gate {
        Gate::new(self.folder(), name)
    }
}

impl Drop for Lab {
    #[expect(clippy::print_stderr, reason = "the time a test took, beside its result")]
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        eprintln!("{} took {:.1} s", self.name, self.begun.elapsed().as_secs_f64());
        if !failed {
            procs::assert_none_left(self.folder.path(), wait::secs(5));
        }
    }
}
