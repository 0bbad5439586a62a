//! A real HDFS, one NameNode and one DataNode of Hadoop, in a folder of the test's own and on free ports.

use std::process::Command;

use crate::server::{Server, Store, tool};
use crate::{Lab, Submit, bin, wait};

/// See the module's text.
#[derive(Debug)]
pub struct Hdfs {
    authority: String,
    _server: Server,
}

impl Hdfs {
    /// Starts it; `None` where it is not set up.
    pub fn start(lab: &Lab) -> Option<Self> {
        let jars = tool("hdfs/jars", "--hdfs")?;
        let log = lab.path("hdfs-server.log");
        let mut command = Command::new("java");
        command.arg("-Xmx512m").arg("-cp").arg(jars.join("*"));
        command.arg(bin::repository().join("tests/hdfs/MiniDfs.java")).arg(lab.path("hdfs")).current_dir(lab.folder());
        let mut server = Server::start(command, &log);
        let port = wait::until("the NameNode to be ready", wait::secs(60), || {
            server.assert_runs(&log);
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            said.lines().find_map(|line| line.strip_prefix("ready ")?.parse::<u16>().ok())
        });
        Some(Self { authority: format!("127.0.0.1:{port}"), _server: server })
    }
}

impl Store for Hdfs {
    fn url(&self, path: &str) -> String {
        format!("hdfs://{}/{path}", self.authority)
    }

    fn known_to(&self, submit: Submit) -> Submit {
        submit.env("HADOOP_USER_NAME", "tests")
    }

    fn name(&self) -> &'static str {
        "hdfs"
    }
}
