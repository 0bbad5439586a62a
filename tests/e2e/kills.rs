//! `kill -9` of driver, ps, chief or worker at a random moment, many times in a row on the same model directory: after
//! each the ledger is verified, and at the end each row of each epoch was applied exactly once and the line is learned.
//!
//! `TFOS_KILLS` is the number of kills [100], `TFOS_KILLS_SEED` the seed; `cargo xtask kills` sets both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tfos_tests::chance::Chance;
use tfos_tests::data::line;
use tfos_tests::procs::{Signal, assert_none_left, executors};
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::{self, secs};
use tfos_tests::{Lab, Running, Submit, logs};

use crate::{assert_learned, verified_rows};

const ROWS: u64 = 10_000;
const EPOCHS: u64 = 2;

/// Flags, and the nodes of the executors in their order.
const SHAPES: [(&str, &[&str]); 7] = [
    ("--cluster-size 4 --num-ps 2 --consistency *.weight=async,sync", &["ps", "ps", "chief", "worker"]),
    ("--cluster-size 3 --num-ps 1 --consistency local-sgd:4", &["ps", "chief", "worker"]),
    ("--cluster-size 3 --num-ps 1", &["ps", "chief", "worker"]),
    ("--cluster-size 3 --num-ps 1 --sync-replicas", &["ps", "chief", "worker"]),
    ("--cluster-size 4 --num-ps 2", &["ps", "ps", "chief", "worker"]),
    ("--cluster-size 3 --num-ps 1 --max-staleness 2", &["ps", "chief", "worker"]),
    ("--cluster-size 1", &["chief"]),
];

/// Where a kill is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Forming,
    Training,
    Checkpoint,
}

/// One kill as it is planned, before anything is known of how the job will go.
#[derive(Debug)]
struct Plan {
    /// `None` is the driver.
    victim: Option<u32>,
    aim: Moment,
    delay: Duration,
}

impl Plan {
    fn draw(chance: &mut Chance, executors: usize) -> Self {
        let victim = chance.below(executors as u64 + 1).checked_sub(1).map(|id| id as u32);
        let aim = match chance.below(10) {
            0..3 => Moment::Forming,
            3..7 => Moment::Training,
            _ => Moment::Checkpoint,
        };
        let limit = match aim {
            Moment::Forming => 200,
            Moment::Training => 500,
            // At once: a checkpoint takes a few milliseconds.
            Moment::Checkpoint => 1,
        };
        Self { victim, aim, delay: chance.time(Duration::from_millis(limit)) }
    }
}

/// Files of checkpoints that have no manifest, and of segments that are not whole.
fn unfinished(model: &Path) -> BTreeSet<String> {
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(model.join(folder)).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let folders = names("checkpoints").into_iter().filter(|name| {
        let folder = model.join("checkpoints").join(name);
        !folder.join("manifest.json").exists()
    });
    folders.chain(names("ledger").into_iter().filter(|name| name.contains('#'))).collect()
}

/// Text of the logs of the newest generation.
fn newest_logs(model: &Path, before: usize) -> String {
    let folders = || std::fs::read_dir(model.join("job/logs")).into_iter().flatten().flatten();
    if folders().count() <= before {
        return String::new();
    }
    let newest = folders().max_by_key(|f| {
        let name = f.file_name().to_string_lossy().into_owned();
        name.trim_start_matches('g').parse::<u64>().unwrap_or_default()
    });
    newest.map(|f| logs::text(&f.path())).unwrap_or_default()
}

/// A lineage of jobs on one model directory.
struct Lineage<'a> {
    lab: &'a Lab,
    flags: &'static str,
    model: std::path::PathBuf,
}

/// What became of a plan.
enum Outcome {
    /// The victim died, then.
    Killed(Moment),
    /// The job was done before.
    Done(tfos_tests::Done),
}

impl Lineage<'_> {
    fn submit(&self) -> Submit {
        let data = line(self.lab.folder(), ROWS, 4);
        let job = self.lab.probe(&format!("mode=linear epochs={EPOCHS} data={}", data.display()));
        job.model_dir(&self.model).flags("--save-checkpoints-steps 10 --quiet").flags(self.flags)
    }

    /// Waits for the moment; false when the job ended before.
    fn reached(&self, running: &mut Running, plan: &Plan, generations: usize, left: &BTreeSet<String>) -> bool {
        let trains = || newest_logs(&self.model, generations).contains("runs mode=linear as trainer");
        let came = wait::until("the moment of a kill", secs(60), || {
            if !running.is_running() {
                return Some(false);
            }
            // An executor can be killed when it is there, the driver at any time.
            let there = plan.victim.is_none_or(|id| executors(&self.model).iter().any(|e| e.id == id));
            let now = match plan.aim {
                Moment::Forming => true,
                Moment::Training => trains(),
                Moment::Checkpoint => trains() && unfinished(&self.model).difference(left).next().is_some(),
            };
            (there && now).then_some(true)
        });
        // The time of a kill is what this test varies; nothing is waited for but the end of the job.
        came && wait::poll(plan.delay, || (!running.is_running()).then_some(())).is_none()
    }

    fn run(&self, plan: &Plan) -> Outcome {
        let left = unfinished(&self.model);
        let generations = std::fs::read_dir(self.model.join("job/logs")).into_iter().flatten().count();
        let mut running = self.submit().start();
        let reached = self.reached(&mut running, plan, generations, &left);
        let pid = match plan.victim {
            _ if !reached => None,
            None => running.is_running().then(|| running.pid()),
            Some(id) => executors(&self.model).iter().find(|e| e.id == id).map(|e| e.pid),
        };
        let Some(pid) = pid else { return Outcome::Done(running.wait().ok()) };
        // It may end by itself at this very moment.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        let done = running.wait();
        assert_none_left(&self.model, secs(5));
        let moment = if !newest_logs(&self.model, generations).contains("runs mode=linear as trainer") {
            Moment::Forming
        } else if unfinished(&self.model).difference(&left).next().is_some() {
            Moment::Checkpoint
        } else {
            Moment::Training
        };
        // Before it has formed, a cluster has not failed but not formed.
        let killed = match plan.victim {
            None => done.signal() == Some(9),
            Some(_) => matches!(done.code(), Some(1 | 3)),
        };
        if killed {
            assert!(plan.victim.is_none() || done.stderr.contains("SIGKILL"), "the kill is the root cause");
            return Outcome::Killed(moment);
        }
        assert_eq!(done.code(), Some(0), "{:?} was killed, or the job was done just then", plan.victim);
        Outcome::Done(done)
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "what was killed, and when")]
fn whoever_is_killed_and_whenever_each_row_is_applied_exactly_once() {
    let lab = Lab::shared("whoever_is_killed_and_whenever_each_row_is_applied_exactly_once");
    let wanted: u64 = std::env::var("TFOS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let mut chance = Chance::from_environment("TFOS_KILLS_SEED");
    let mut killed: BTreeMap<(&str, Moment), u64> = BTreeMap::new();
    let count = |killed: &BTreeMap<(&str, Moment), u64>| killed.values().sum::<u64>();
    let mut jobs = 0;
    for (number, (flags, nodes)) in SHAPES.into_iter().cycle().enumerate() {
        if count(&killed) >= wanted {
            break;
        }
        let lineage = Lineage { lab: &lab, flags, model: lab.path(&format!("model-{number}")) };
        let done = loop {
            let plan = Plan::draw(&mut chance, nodes.len());
            jobs += 1;
            if count(&killed) >= wanted {
                break lineage.submit().run().ok();
            }
            match lineage.run(&plan) {
                Outcome::Done(done) => break done,
                Outcome::Killed(moment) => {
                    let node = plan.victim.and_then(|id| nodes.get(id as usize)).copied().unwrap_or("driver");
                    *killed.entry((node, moment)).or_default() += 1;
                    if !checkpoints(&lineage.model).is_empty() {
                        let rows = verified_rows(&lineage.model);
                        assert!(rows <= EPOCHS * ROWS, "{rows} rows");
                    }
                }
            }
        };
        assert_eq!(verified_rows(&lineage.model), EPOCHS * ROWS, "lineage {number}, {flags}");
        assert_learned(&done);
        std::fs::remove_dir_all(&lineage.model).unwrap();
    }
    eprintln!("{jobs} jobs, {} kills: {killed:?}", count(&killed));
    let share = |of: &dyn Fn(&str, Moment) -> bool, part: u64| {
        let found: u64 = killed.iter().filter(|((node, moment), _)| of(node, *moment)).map(|(_, n)| n).sum();
        assert!(found * part >= wanted, "too few of one kind: {killed:?}");
    };
    for moment in [Moment::Forming, Moment::Training] {
        share(&|_, m| m == moment, 10);
    }
    share(&|_, m| m == Moment::Checkpoint, 50);
    for node in ["driver", "ps", "chief", "worker"] {
        share(&|n, _| n == node, 20);
    }
}
