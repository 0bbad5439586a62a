//! Settings as written. The only place of serde_yaml.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

use super::storage::Storage;
use super::units::{ByteSize, Period};
use crate::ports::PortRange;

/// One thing that is wrong with a job's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Option or key.
    pub key: String,
    /// What is wrong with it, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem with `key`.
    pub fn new(key: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { key: key.into(), message: message.to_string() }
    }
}

/// Everything that is wrong with a job's settings, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the settings came from, when they came from a file.
    pub source_name: Option<String>,
    /// The problems, in the order of the settings.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source_name {
            Some(name) => write!(f, "{name}: ")?,
            None => f.write_str("invalid settings: ")?,
        }
        for (i, problem) in self.problems.iter().enumerate() {
            if self.problems.len() > 1 {
                f.write_str("\n  - ")?;
            } else if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", problem.key, problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

macro_rules! settings {
    ($($(#[$doc:meta])* $key:literal $field:ident: $type:ty,)*) => {
        /// A job's settings as written; `None` where nothing was. Keys of `job.yaml` are the names of the
        /// flags without the dashes in front.
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        pub struct RawJob {
            $($(#[$doc])* #[serde(rename = $key, skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
        }

        impl RawJob {
            /// Every key, in order.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            /// `self` where it says something, `below` elsewhere: flags win over the file.
            pub fn over(self, below: Self) -> Self {
                Self { $($field: self.$field.or(below.$field),)* }
            }

            fn from_mapping(mut map: serde_yaml::Mapping, problems: &mut Vec<Problem>) -> Self {
                let job = Self { $($field: take(&mut map, $key, problems),)* };
                for key in map.keys() {
                    let key = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
                    problems.push(Problem::new(format!("`{key}`"), unknown_key(&key)));
                }
                job
            }
        }
    };
}

settings! {
    /// How executors come to life: `local` or `standalone`.
    "master" master: String,
    /// Executors in all, one node each.
    "cluster-size" cluster_size: u32,
    /// Parameter servers among them.
    "num-ps" num_ps: u32,
    /// GPUs for each chief, worker and evaluator.
    "num-gpus" num_gpus: u32,
    /// One node scores every checkpoint.
    "evaluator" evaluator: bool,
    /// When gradients become updates: `sync`, `sync:R`, `ssp:S`, `async` or `local-sgd:H`.
    "consistency" consistency: String,
    /// Aggregate the gradients of the workers before each update.
    "sync-replicas" sync_replicas: bool,
    /// Gradients per update in synchronous training; fewer than the workers makes the rest backups.
    "replicas-to-aggregate" replicas_to_aggregate: u32,
    /// How many of its own steps a training node may be ahead of the slowest one in asynchronous training.
    "max-staleness" max_staleness: u32,
    /// The same parameters, bit by bit, for any number of workers and ps, and after a resume.
    "deterministic" deterministic: bool,
    /// Batches of which the gradients make one update in deterministic training.
    "micro-batches" micro_batches: u32,
    /// How variables are dealt to the ps: `even` or `round-robin`.
    "placement" placement: String,
    /// What carries gradients and parameters: `auto`, `shared-memory`, `tcp` or `grpc`.
    "transport" transport: String,
    /// How gradients are sent: `none`, `bf16` or `topk:FRACTION`.
    "compress" compress: String,
    /// Whether gradients are sent while the backward pass still runs: `auto`, `on` or `off`.
    "overlap" overlap: String,
    /// In what numbers a model computes while it trains: `f32` or `bf16`.
    "precision" precision: String,
    /// Copies of each parameter shard.
    "ps-replicas" ps_replicas: u32,
    /// Where checkpoints, ledger and events go: any object-store URL or a path.
    "model-dir" model_dir: String,
    /// Time between checkpoints.
    "save-checkpoints-secs" save_checkpoints_secs: Period,
    /// Steps between checkpoints.
    "save-checkpoints-steps" save_checkpoints_steps: u64,
    /// How many of the newest checkpoints stay.
    "keep-checkpoints" keep_checkpoints: usize,
    /// Beside these, the first checkpoint at or after each multiple of so many steps stays.
    "keep-every" keep_every: u64,
    /// Beside these, the best checkpoint by a metric of the evaluator stays: `accuracy`, or `-loss`.
    "keep-best" keep_best: String,
    /// Checkpoints that fail in a row before the job stops.
    "checkpoint-failure-limit" checkpoint_failure_limit: u32,
    /// How much of a checkpoint a resumed job takes: `full` or `parameters-only`.
    "restore" restore: String,
    /// Variables whose names have changed since: `OLD=NEW`, `OLD.*=NEW.*`.
    "restore-map" restore_map: Vec<String>,
    /// What becomes of variables that the checkpoint lacks or has in another shape: `error` or `init`.
    "restore-missing" restore_missing: String,
    /// Begin with the parameters of another model: a model directory, a manifest or a safetensors file.
    "init-from" init_from: String,
    /// Who runs queries with an exchange: `datafusion` or `ballista`.
    "engine" engine: String,
    /// Stop after this global step.
    "max-steps" max_steps: u64,
    /// Bound of all feed queues of an executor together.
    "feed-memory" feed_memory: ByteSize,
    /// Time in which all executors have to register.
    "reservation-timeout" reservation_timeout: Period,
    /// Time without a sign of life after which an executor is lost.
    "heartbeat-timeout" heartbeat_timeout: Period,
    /// Address on which the driver listens.
    "bind" bind: String,
    /// Host name or address under which executors reach the driver.
    "advertise" advertise: String,
    /// Port or range of ports of the driver.
    "port" port: PortRange,
    /// Ports of the executors that the local launcher starts.
    "executor-ports" executor_ports: PortRange,
    /// File with the job's token; written if it does not exist.
    "token-file" token_file: String,
    /// Folder of the nodes' logs.
    "log-dir" log_dir: String,
    /// Keys and addresses of object stores, by the names that they have in the environment, which wins.
    "storage" storage: Storage,
    /// TensorBoard event files.
    "tensorboard" tensorboard: bool,
    /// Remote direct memory access between workers and ps.
    "rdma" rdma: bool,
    /// Seed of everything random.
    "seed" seed: u64,
    /// Application: the name of a built-in one or the path of a program.
    "application" application: String,
    /// Arguments of the application.
    "arguments" arguments: Vec<String>,
}

fn take<T: DeserializeOwned>(map: &mut serde_yaml::Mapping, key: &str, problems: &mut Vec<Problem>) -> Option<T> {
    let value = map.remove(key)?;
    if value.is_null() {
        return None;
    }
    match T::deserialize(value) {
        Ok(value) => Some(value),
        Err(e) => {
            problems.push(Problem::new(format!("`{key}`"), e));
            None
        }
    }
}

fn unknown_key(key: &str) -> String {
    let dashed = key.replace('_', "-");
    let near = RawJob::KEYS.iter().find(|k| **k == dashed || distance(k, &dashed) <= 2);
    match near {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known are {}", RawJob::KEYS.join(", ")),
    }
}

/// Levenshtein's edit distance, for the hint in the message.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((y, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(x != *y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl RawJob {
    /// Reads `job.yaml`. Reports every problem, not the first one only.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, ConfigError> {
        let error = |problems| ConfigError { source_name: Some(name.to_owned()), problems };
        let value: Value = serde_yaml::from_str(text).map_err(|e| error(vec![Problem::new("yaml", e)]))?;
        let map = match value {
            Value::Null => serde_yaml::Mapping::new(),
            Value::Mapping(map) => map,
            _ => return Err(error(vec![Problem::new("yaml", "expected `key: value` lines at the top")])),
        };
        let mut problems = vec![];
        let job = Self::from_mapping(map, &mut problems);
        if problems.is_empty() { Ok(job) } else { Err(error(problems)) }
    }

    /// Writes the settings as `job.yaml`.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        serde_yaml::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "cluster-size: 3\nnum_ps: 1\nwhatever: 2\nseed: minus one\nreservation-timeout: 10s\n";
        let error = RawJob::from_yaml("job.yaml", text).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.problems.len(), 3, "{text}");
        assert!(
            text.contains("job.yaml") && text.contains("did you mean `num-ps`") && text.contains("`seed`"),
            "{text}"
        );
    }

    #[test] // the ports of test_namespace and test_TFParams: every form of settings, merged
    fn test_namespace() {
        let file = RawJob::from_yaml("job.yaml", "cluster-size: 3\nnum-ps: 1\narguments: [--epochs, '3']\n").unwrap();
        assert_eq!(file.arguments.as_deref(), Some(&["--epochs".to_owned(), "3".to_owned()][..]));
        let flags = RawJob { cluster_size: Some(5), ..RawJob::default() };
        let merged = flags.over(file);
        assert_eq!((merged.cluster_size, merged.num_ps), (Some(5), Some(1)));
        assert_eq!(RawJob::from_yaml("again", &merged.to_yaml().unwrap()).unwrap(), merged);
    }

    #[test]
    fn an_empty_file_says_nothing_and_a_list_is_no_job() {
        assert_eq!(RawJob::from_yaml("e", "").unwrap(), RawJob::default());
        assert!(RawJob::from_yaml("l", "- a\n").is_err());
    }
}
