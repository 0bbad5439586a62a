//! A real S3 server over a folder of the test's own, on a port that the kernel chose.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::{Server, Store, tool};
use crate::{Lab, Proxy, Submit, wait};

/// The only bucket.
const BUCKET: &str = "tfos";
const KEY: &str = "AKIDOFTHETESTS";
/// What must never be shown.
pub const SECRET: &str = "the-secret-of-the-tests";

/// See the module's text.
#[derive(Debug)]
pub struct S3 {
    endpoint: String,
    folder: std::path::PathBuf,
    _server: Server,
}

impl S3 {
    /// Starts it; `None` where it is not set up.
    pub fn start(lab: &Lab) -> Option<Self> {
        let program = tool("s3/versitygw", "--s3")?;
        let (folder, log) = (lab.path("s3"), lab.path("s3-server.log"));
        std::fs::create_dir_all(folder.join(BUCKET)).expect("a folder for the server");
        let mut command = Command::new(program);
        command.args(["--port", "127.0.0.1:0", "--quiet", "--access", KEY, "--secret", SECRET, "posix"]).arg(&folder);
        let mut server = Server::start(command, &log);
        let port = wait::until("the S3 server to listen", wait::secs(20), || {
            server.assert_runs(&log);
            listening(server.0.id())
        });
        Some(Self { endpoint: format!("http://127.0.0.1:{port}"), folder, _server: server })
    }
}

impl S3 {
    /// What [`Store::known_to`] sets, as lines of a mapping in YAML.
    pub fn yaml(&self) -> String {
        let lines =
            [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINT_URL", &self.endpoint)];
        let fixed = "  AWS_ALLOW_HTTP: true\n  AWS_REGION: us-east-1\n".to_owned();
        lines.iter().map(|(name, value)| format!("  {name}: {value}\n")).chain([fixed]).collect()
    }

    /// All text that the server keeps.
    pub fn texts(&self) -> Vec<String> {
        let (mut texts, mut folders) = (vec![], vec![self.folder.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => texts.push(String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()),
                }
            }
        }
        texts
    }

    /// A proxy in front of it, which commands from now on are told of instead.
    pub fn behind_proxy(&mut self) -> Proxy {
        let proxy = Proxy::start(self.endpoint.trim_start_matches("http://"));
        self.endpoint = proxy.endpoint();
        proxy
    }

    /// The folder in which the server keeps a path.
    pub fn folder(lab: &Lab, path: &str) -> PathBuf {
        lab.path("s3").join(BUCKET).join(path)
    }
}

impl Store for S3 {
    fn url(&self, path: &str) -> String {
        format!("s3://{BUCKET}/{path}")
    }

    fn known_to(&self, submit: Submit) -> Submit {
        let keys = submit.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        keys.env("AWS_ENDPOINT_URL", &self.endpoint).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1")
    }

    fn name(&self) -> &'static str {
        "s3"
    }
}

/// The TCP port on which a process listens: the server does not tell which one it was given.
fn listening(pid: u32) -> Option<u16> {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(|fd| {
            let target = std::fs::read_link(fd.ok()?.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/tcp")).ok()?;
    table.lines().skip(1).find_map(|line| {
        // sl local_address rem_address st ... inode; 0A is LISTEN.
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.get(3) == Some(&"0A") && sockets.iter().any(|s| words.get(9) == Some(&s.as_str()));
        let (_, port) = words.get(1)?.split_once(':')?;
        ours.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}
