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
    let mut ps = Role::start(&["ps", &WORKERS.to_string(), transport])?;
    let address = ps.line()?;
    let (elements, seconds, computes) = (elements.to_string(), options.seconds.to_string(), computes.to_string());
    let compress = options.compress.to_string();
    let workers: Result<Vec<Role>, Failure> = (0..WORKERS)
        .map(|worker| {
            let worker = worker.to_string();
            Role::start(&["worker", &worker, &address, transport, mode, &elements, &computes, &seconds, &compress])
        })
        .collect();
    let mut workers = workers?;
    for worker in &mut workers {
        worker.line()?;
    }
    for worker in &mut workers {
        worker.go()?;
    }
    workers.iter_mut().map(|worker| Ok(worker.line()?.parse()?)).collect()
}
