//! Settings as checked: defaults filled in, contradictions refused, every option that cannot be honoured
//! an error.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::consistency::Consistency;
use super::engine::Engine;
use super::plane::Plane;
use super::precision::Precision;
use super::raw::{ConfigError, Problem, RawJob};
use super::restore::Restore;
use crate::checkpoint::{Best, Retention};
use crate::cluster::Shape;
use crate::ports::PortRange;

/// How executors come to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Master {
    /// Child processes of the driver, of the same binary.
    Local,
    /// Started by somebody else and pointed at the driver.
    Standalone,
}

/// Who reads the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputMode {
    /// The driver plans a query; executors run its partitions and feed the batches to their node.
    #[default]
    Feed,
    /// Nodes read files themselves, one lease after another.
    Direct,
}

/// Where the nodes' logs go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogDir {
    /// Named by the user.
    Given(String),
    /// `job/logs` of a model directory on this machine, a temporary folder otherwise.
    Default,
}

/// A job's settings, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// How executors come to life.
    pub master: Master,
    /// Nodes by role.
    #[serde(flatten)]
    pub shape: Shape,
    /// GPUs for each chief, worker and evaluator.
    pub num_gpus: u32,
    /// When a gradient becomes an update.
    pub consistency: Consistency,
    /// In what numbers a model computes while it trains.
    #[serde(default)]
    pub precision: Precision,
    /// How gradients and parameters travel.
    #[serde(default)]
    pub plane: Plane,
    /// Where checkpoints go; `None` puts them into a temporary folder that goes away with the job.
    pub model_dir: Option<String>,
    /// Time between checkpoints.
    pub save_checkpoints_every: Option<Duration>,
    /// Steps between checkpoints.
    pub save_checkpoints_steps: Option<u64>,
    /// Which checkpoints stay.
    pub keep: Retention,
    /// Checkpoints that fail in a row before the job stops.
    pub checkpoint_failure_limit: u32,
    /// What it begins with.
    pub restore: Restore,
    /// Who runs queries with an exchange; `None`: Ballista where it is built in and those that train are on several hosts.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// Stop after this global step.
    pub max_steps: Option<u64>,
    /// Bound of all feed queues of an executor together, bytes.
    pub feed_memory: u64,
    /// Time in which all executors have to register.
    pub reservation_timeout: Duration,
    /// Time without a sign of life after which an executor is lost.
    pub heartbeat_timeout: Duration,
    /// Address on which the driver listens.
    pub bind: String,
    /// Host under which executors reach the driver.
    pub advertise: Option<String>,
    /// Ports of the driver.
    pub port: PortRange,
    /// Ports of local executors.
    pub executor_ports: PortRange,
    /// File with the job's token.
    pub token_file: Option<String>,
    /// Folder of the nodes' logs.
    pub log_dir: LogDir,
    /// Names of the variables of object stores that `job.yaml` sets; their values are nowhere but in the environment.
    #[serde(default)]
    pub storage: Vec<String>,
    /// Seed of everything random.
    pub seed: u64,
    /// Name of a built-in application or path of a program.
    pub application: String,
    /// Arguments of the application.
    pub arguments: Vec<String>,
}

const DEFAULT_FEED_MEMORY: u64 = 256 << 20;
const MIN_FEED_MEMORY: u64 = 1 << 20;

impl Job {
    /// Checks everything and reports every problem at once.
    pub fn check(raw: RawJob) -> Result<Self, ConfigError> {
        let mut problems = vec![];
        let mut bad = |key: &str, message: String| problems.push(Problem::new(format!("--{key}"), message));
        let master = match raw.master.as_deref() {
            None | Some("local") => Master::Local,
            Some("standalone") => Master::Standalone,
            Some(other) => {
                bad("master", format!("unknown launcher `{other}`; there are `local` and `standalone`"));
                Master::Local
            }
        };
        let num_ps = raw.num_ps.unwrap_or(0);
        let evaluator = raw.evaluator.unwrap_or(false);
        let least = num_ps.saturating_add(u32::from(evaluator)).saturating_add(1);
        let shape = Shape { cluster_size: raw.cluster_size.unwrap_or(least), num_ps, evaluator };
        if shape.cluster_size > 100_000 {
            bad("cluster-size", format!("{} executors are more than this program has ever seen", shape.cluster_size));
        } else if let Err(e) = shape.validate() {
            bad("cluster-size", e.to_string());
        }
        let trainers = shape.num_trainers().max(1);
        let consistency = Consistency::check(&raw, trainers, num_ps, &mut bad);
        let plane = Plane::check(&raw, num_ps, &mut bad);
        let precision = Precision::check(&raw, &mut bad);
        for (key, asked) in [
            ("ps-replicas", raw.ps_replicas.is_some_and(|n| n > 1)),
            ("tensorboard", raw.tensorboard.unwrap_or(false)),
            ("rdma", raw.rdma.unwrap_or(false)),
        ] {
            if asked {
                bad(key, "is not built in yet; leave it out".into());
            }
        }
        if raw.save_checkpoints_steps == Some(0) {
            bad("save-checkpoints-steps", "must be at least 1".into());
        }
        if raw.keep_checkpoints == Some(0) {
            bad("keep-checkpoints", "must be at least 1: a job resumes from the newest one".into());
        }
        if raw.checkpoint_failure_limit == Some(0) {
            bad("checkpoint-failure-limit", "must be at least 1: the failure at which the job stops".into());
        }
        if raw.keep_every == Some(0) {
            bad("keep-every", "must be at least 1".into());
        }
        let best = match raw.keep_best.as_deref().map(str::parse::<Best>) {
            Some(Ok(_)) if !evaluator => {
                bad("keep-best", "only together with --evaluator, which scores the checkpoints".into());
                None
            }
            Some(Err(message)) => {
                bad("keep-best", message);
                None
            }
            Some(Ok(best)) => Some(best),
            None => None,
        };
        let restore = Restore::check(&raw, &mut bad);
        let engine = Engine::check(&raw, &mut bad);
        if raw.max_steps == Some(0) {
            bad("max-steps", "must be at least 1".into());
        }
        let feed_memory = raw.feed_memory.map_or(DEFAULT_FEED_MEMORY, |b| b.0);
        if feed_memory < MIN_FEED_MEMORY {
            bad("feed-memory", format!("{feed_memory} bytes are too few; give 1MiB or more"));
        }
        let reservation_timeout = raw.reservation_timeout.map_or(Duration::from_secs(600), |p| p.0);
        let heartbeat_timeout = raw.heartbeat_timeout.map_or(Duration::from_secs(30), |p| p.0);
        if heartbeat_timeout < Duration::from_secs(1) {
            bad("heartbeat-timeout", "must be at least 1s".into());
        }
        let storage = raw.storage.unwrap_or_default();
        for name in storage.unknown() {
            bad(
                "storage",
                format!("`{name}` is no variable of a store; they begin with AWS_, AZURE_, GOOGLE_ or HADOOP_"),
            );
        }
        if master == Master::Standalone && !storage.names().is_empty() {
            let why = "not with `standalone`, because keys do not travel: set the variables where each executor starts";
            bad("storage", why.into());
        }
        let application = raw.application.unwrap_or_default();
        if application.is_empty() {
            bad("application", "none given: name a built-in one (`tfos apps` lists them) or a program".into());
        }
        // By time unless the user chose steps.
        let by_time = raw.save_checkpoints_secs.map(|p| p.0);
        let save_checkpoints_every = match (by_time, raw.save_checkpoints_steps) {
            (None, None) => Some(Duration::from_secs(600)),
            (time, _) => time,
        };
        if !problems.is_empty() {
            return Err(ConfigError { source_name: None, problems });
        }
        Ok(Self {
            master,
            shape,
            num_gpus: raw.num_gpus.unwrap_or(0),
            consistency,
            precision,
            plane,
            model_dir: raw.model_dir,
            save_checkpoints_every,
            save_checkpoints_steps: raw.save_checkpoints_steps,
            keep: Retention { newest: raw.keep_checkpoints.unwrap_or(5), every: raw.keep_every, best },
            checkpoint_failure_limit: raw.checkpoint_failure_limit.unwrap_or(5),
            restore,
            engine,
            max_steps: raw.max_steps,
            feed_memory,
            reservation_timeout,
            heartbeat_timeout,
            bind: raw.bind.unwrap_or_else(|| match master {
                Master::Local => "127.0.0.1".into(),
                Master::Standalone => "0.0.0.0".into(),
            }),
            advertise: raw.advertise,
            port: raw.port.unwrap_or_default(),
            executor_ports: raw.executor_ports.unwrap_or_default(),
            token_file: raw.token_file,
            log_dir: raw.log_dir.map_or(LogDir::Default, LogDir::Given),
            storage: storage.names(),
            seed: raw.seed.unwrap_or(0),
            application,
            arguments: raw.arguments.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawJob {
        RawJob { application: Some("mnist".into()), ..RawJob::default() }
    }

    #[test]
    fn defaults_are_one_process_with_checkpoints_every_ten_minutes() {
        let job = Job::check(raw()).unwrap();
        assert_eq!(job.shape, Shape { cluster_size: 1, num_ps: 0, evaluator: false });
        assert_eq!(job.save_checkpoints_every, Some(Duration::from_secs(600)));
        assert_eq!(job.reservation_timeout, Duration::from_secs(600));
        assert_eq!(job.consistency, Consistency::Async);
    }

    #[test]
    fn steps_take_the_place_of_the_default_time() {
        let job = Job::check(RawJob { save_checkpoints_steps: Some(7), ..raw() }).unwrap();
        assert_eq!((job.save_checkpoints_every, job.save_checkpoints_steps), (None, Some(7)));
    }

    #[test]
    fn the_best_checkpoint_needs_somebody_who_scores() {
        let job = |evaluator: bool| {
            let (cluster_size, keep_best) = (Some(3), Some("-loss".into()));
            RawJob { cluster_size, num_ps: Some(1), evaluator: Some(evaluator), keep_best, ..raw() }
        };
        let best = Job::check(job(true)).unwrap().keep.best.unwrap();
        assert_eq!((best.metric.as_str(), best.least), ("loss", true));
        assert!(Job::check(job(false)).unwrap_err().to_string().contains("--evaluator"));
        assert!(Job::check(RawJob { keep_every: Some(0), ..raw() }).is_err());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let job = RawJob {
            master: Some("yarn".into()),
            cluster_size: Some(1),
            num_ps: Some(2),
            rdma: Some(true),
            replicas_to_aggregate: Some(1),
            ..RawJob::default()
        };
        let error = Job::check(job).unwrap_err();
        let keys: Vec<&str> = error.problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["--master", "--cluster-size", "--replicas-to-aggregate", "--rdma", "--application"]);
    }
}
