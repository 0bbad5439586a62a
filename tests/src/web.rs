//! A real web server over a folder of the test's own, which it only reads.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::path::PathBuf;
use std::process::Command;

use crate::server::{Server, Store, tool};
use crate::{Lab, Submit, bin, wait};

/// See the module's text.
#[derive(Debug)]
pub struct Web {
    folder: PathBuf,
    root: String,
    _server: Server,
}

impl Web {
    /// Starts it; `None` where it is not set up.
    pub fn start(lab: &Lab) -> Option<Self> {
        let python = tool("http/bin/python", "--http")?;
        let (folder, port, log) = (lab.path("http"), lab.path("http-port"), lab.path("http-server.log"));
        std::fs::create_dir_all(&folder).expect("a folder for the server");
        let mut command = Command::new(python);
        command.arg(bin::repository().join("tests/http/serve.py")).args([&folder, &port]);
        let mut server = Server::start(command, &log);
        let port = wait::until("the web server to listen", wait::secs(20), || {
            server.assert_runs(&log);
            std::fs::read_to_string(&port).ok()
        });
        Some(Self { folder, root: format!("http://127.0.0.1:{port}"), _server: server })
    }

    /// What it serves.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }
}

impl Store for Web {
    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    fn known_to(&self, submit: Submit) -> Submit {
        submit
    }

    fn name(&self) -> &'static str {
        "http"
    }
}
