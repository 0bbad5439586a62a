//! Where the built programs are.
#![expect(clippy::expect_used, clippy::panic, reason = "the harness of tests ends a test by a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Folder of the programs: `TFOS_BIN_DIR`, or the one above the test binary's `deps`.
///
/// `cargo test` builds the programs of the package under test only, so the others are built here first, once; that
/// takes a moment when nothing has changed, and keeps anybody from testing yesterday's program.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("TFOS_BIN_DIR") {
            return PathBuf::from(folder);
        }
        let exe = std::env::current_exe().expect("the test binary has a path");
        let deps = exe.parent().expect("the test binary is in a folder");
        let folder = if deps.ends_with("deps") { deps.parent().unwrap_or(deps) } else { deps };
        // Started by cargo: by hand, what is there is what is tested.
        if let Some(cargo) = std::env::var_os("CARGO") {
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--workspace", "--bins", "--examples"]).current_dir(repository());
            // cargo exports what it knows to the programs that it runs. Given back to cargo it looks like a change to the
            // build scripts of ring and of libtorch's bindings, and all that stands on them would be built anew.
            for (name, _) in std::env::vars_os() {
                let own = name.to_str().is_some_and(|n| {
                    ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
                        .iter()
                        .any(|prefix| n.starts_with(prefix))
                });
                if own {
                    build.env_remove(name);
                }
            }
            if std::env::var_os("LIBTORCH").is_some_and(|l| l == *repository().join(".tools/libtorch/torch")) {
                build.env_remove("LIBTORCH");
            }
            if folder.ends_with("release") {
                build.arg("--release");
            }
            let built = build.status().expect("cargo can be run");
            assert!(built.success(), "`cargo build --workspace --bins` failed: {built}");
        }
        folder.to_path_buf()
    })
}

/// Root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".."))
}

/// Path of a program of this workspace.
pub fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    if !path.is_file() {
        panic!("{} is not there: run `cargo build --workspace` first, or set TFOS_BIN_DIR", path.display());
    }
    path
}

/// The command line.
pub fn tfos() -> PathBuf {
    program("tfos")
}

/// The program whose node misbehaves as it is told.
pub fn probe() -> PathBuf {
    program("probe_app")
}
