//! The cases in turn: each starts its own processes, lets them warm up, and measures all of them at once.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tfos_ps::Compress;

use crate::report::{Measured, Report};
use crate::{Failure, Options, limit, peers};

pub(crate) const WORKERS: u32 = 2;

/// One of ours; `exchange` computes nothing.
const CASES: &[(&str, &str, bool)] = &[
    ("shm", "async", true),
    ("shm", "sync", true),
    ("tcp", "async", true),
    ("tcp", "sync", true),
    #[cfg(feature = "grpc")]
    ("grpc", "async", true),
    #[cfg(feature = "grpc")]
    ("grpc", "sync", true),
    ("shm", "async", false),
    ("shm", "sync", false),
    ("tcp", "async", false),
    ("tcp", "sync", false),
    #[cfg(feature = "grpc")]
    ("grpc", "async", false),
    #[cfg(feature = "grpc")]
    ("grpc", "sync", false),
];

pub(crate) fn run_all(options: &Options) -> Result<(), Failure> {
    let mut report = Report::new(options.json);
    for round in 0..options.rounds {
        report.memory(&limit::measure()?);
        for &elements in &options.elements {
            for &(transport, mode, computes) in CASES {
                let what = if computes { "step" } else { "exchange" };
                let name = match options.compress {
                    Compress::None => format!("tfos-{transport}-{mode}"),
                    compress => format!("tfos-{transport}-{compress}-{mode}"),
                };
                if format!("{name} {what}").contains(&options.only) {
                    let rates = ours(elements, transport, mode, computes, options)?;
                    report.add(Measured { system: name, what, elements, rates, round });
                }
            }
            for (system, what, rates) in peers::measure(options, elements)? {
                report.add(Measured { system, what, elements, rates, round });
            }
        }
    }
    report.summary();
    Ok(())
}

/// A process of this program in another role. It ends when its standard input does.
struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    fn start(arguments: &[&str]) -> Result<Role, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("role").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Role { child, stdin, stdout })
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err("a process of the bench ended early; its message is above".into());
        }
        Ok(line.trim().to_owned())
    }

    fn go(&mut self) -> Result<(), Failure> {
        if let Some(stdin) = &mut self.stdin {
            stdin.write_all(b"go\n")?;
        }
        Ok(())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.stdin = None;
        drop(self.child.wait());
    }
}

/// Steps per second of each worker.
fn ours(elements: usize, transport: &str, mode: &str, computes: bool, options: &Options) -> Result<Vec<f64>, Failure> {
    let work = if computes { "model" } else { "nothing" };
    let cluster = Cluster { shards: 1, workers: WORKERS, transport, mode, elements, work, seconds: options.seconds };
    Ok(cluster.run(options.compress)?.rates)
}

/// Processes that exchange gradients and parameters for a while.
pub(crate) struct Cluster<'a> {
    pub(crate) shards: usize,
    pub(crate) workers: u32,
    pub(crate) transport: &'a str,
    pub(crate) mode: &'a str,
    pub(crate) elements: usize,
    pub(crate) work: &'a str,
    pub(crate) seconds: f64,
}

/// What they did meanwhile.
pub(crate) struct Done {
    /// Steps per second of each worker.
    pub(crate) rates: Vec<f64>,
    /// Seconds of CPU of all ps together.
    pub(crate) cpu: f64,
    /// What ps:0 told its host.
    pub(crate) events: f64,
    pub(crate) pushes: f64,
}

impl Cluster<'_> {
    pub(crate) fn run(&self, compress: Compress) -> Result<Done, Failure> {
        let Cluster { transport, mode, work, .. } = *self;
        let (shards, workers) = (self.shards.to_string(), self.workers.to_string());
        let (mut all, mut addresses): (Vec<Role>, Vec<String>) = (Vec::new(), Vec::new());
        for shard in 0..self.shards {
            let first = addresses.first().cloned().unwrap_or_default();
            let mut ps = Role::start(&["ps", &shard.to_string(), &shards, &workers, transport, &first])?;
            addresses.push(ps.line()?);
            all.push(ps);
        }
        let (addresses, elements) = (addresses.join(","), self.elements.to_string());
        let (seconds, compress) = (self.seconds.to_string(), compress.to_string());
        let mut trainers = Vec::new();
        for worker in 0..self.workers {
            let (worker, settings) = (worker.to_string(), [mode, &elements, work, &seconds, &compress]);
            let who = ["worker", &worker, &workers, &addresses, transport];
            trainers.push(Role::start(&[&who[..], &settings].concat())?);
        }
        for worker in &mut trainers {
            worker.line()?;
        }
        let before = used(&mut all)?;
        for worker in &mut trainers {
            worker.go()?;
        }
        let rates: Result<Vec<f64>, Failure> = trainers.iter_mut().map(|worker| Ok(worker.line()?.parse()?)).collect();
        let after = used(&mut all)?;
        let [cpu, events, pushes] = std::array::from_fn(|i| after[i] - before[i]);
        Ok(Done { rates: rates?, cpu, events, pushes })
    }
}

/// Of all ps: seconds of CPU, events, pushes.
fn used(servers: &mut [Role]) -> Result<[f64; 3], Failure> {
    let mut sums = [0.0; 3];
    for server in servers {
        server.go()?;
        let line = server.line()?;
        for (sum, word) in sums.iter_mut().zip(line.split(' ')) {
            *sum += word.parse::<f64>()?;
        }
    }
    Ok(sums)
}
