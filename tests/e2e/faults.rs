//! A store on its bad days, by a proxy in front of a real S3 server: slow, throttling, answering 500, cutting connections,
//! listing late. Training goes on, nothing is lost, and the log says what is going on. Each test makes sure that its
//! fault came, and came in the middle of the job.

use std::time::Duration;

use tfos_tests::data::line;
use tfos_tests::procs::{Signal, assert_none_left};
use tfos_tests::server::Store;
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::{self, secs};
use tfos_tests::{Done, Fault, Gate, Lab, Proxy, Running, S3, Submit, bin};

use crate::assert_learned;

const ROWS: u64 = 4000;
const EPOCHS: u64 = 2;
/// Where the trainers stand when the fault comes, in steps of their own.
const AT: u64 = 60;

/// A job with rows and model directory on the store.
struct Job<'a> {
    lab: &'a Lab,
    store: S3,
    proxy: Proxy,
    epochs: u64,
}

impl<'a> Job<'a> {
    /// `None` where there is no server.
    fn new(lab: &'a Lab) -> Option<Self> {
        let mut store = S3::start(lab)?;
        let data = line(lab.folder(), ROWS, 4);
        let put = format!("data convert {} {} --num-files 4 --to-format parquet", data.display(), store.url("line"));
        store.known_to(Submit::tfos(&put)).run().ok();
        let proxy = store.behind_proxy();
        Some(Self { lab, store, proxy, epochs: EPOCHS })
    }

    fn submit(&self, epochs: u64) -> Submit {
        self.submit_to(&self.store.url("model"), epochs)
    }

    fn submit_to(&self, model: &str, epochs: u64) -> Submit {
        let probe = bin::probe().display().to_string();
        let job =
            self.store.known_to(Submit::new(&probe)).flags("--cluster-size 3 --num-ps 1 --save-checkpoints-steps 40");
        let job = job.flag("--model-dir", model).flag("--log-dir", self.lab.path("logs"));
        job.args(&format!("mode=linear epochs={epochs} data={}", self.store.url("line")))
    }

    /// A job whose trainers stand in the middle of their work, behind a first checkpoint.
    fn in_the_middle(&self, gate: &Gate) -> Running {
        let mut running = self.submit(self.epochs).args_of(gate.arguments(AT)).start();
        gate.reached(&mut running, &[0, 1]);
        wait::until("a checkpoint on the store", secs(30), || self.steps().last().copied());
        running
    }

    /// Steps that are committed, whatever a listing shows.
    fn steps(&self) -> Vec<u64> {
        checkpoints(&S3::folder(self.lab, "model"))
    }

    fn ask(&self, words: &str) -> Done {
        self.store.known_to(Submit::tfos(&format!("{words} {}", self.store.url("model")))).run().ok()
    }

    /// Each row once, the line learned, and the same job goes on from there.
    fn is_whole(&self, done: &Done) {
        self.proxy.set(Fault::None);
        assert_eq!(done.number("global_step") as u64, self.steps().last().copied().unwrap());
        assert_eq!(self.verified(), self.epochs * ROWS);
        assert_learned(done);
        let more = self.submit(self.epochs + 1).run().ok().says(&["resuming from step"]);
        assert_eq!(more.number("rows") as u64, ROWS);
        assert_eq!(self.verified(), (self.epochs + 1) * ROWS);
    }

    fn verified(&self) -> u64 {
        let done = self.ask("verify-ledger --output json");
        assert_eq!(done.json["ok"], true, "{}", done.json);
        done.number("rows_total") as u64
    }

    /// What driver and nodes have logged.
    fn said(&self, done: &Done) -> String {
        done.stderr.clone() + &tfos_tests::logs::text(&self.lab.path("logs"))
    }

    /// A fault in the middle of a job; `goes` says when the store is well again: after so many requests.
    fn survives(&self, fault: Fault, least: u64, goes: bool, words: &[&str]) -> Done {
        let mut gate = self.lab.gate("gate");
        let mut running = self.in_the_middle(&gate);
        self.proxy.set(fault);
        gate.open();
        wait::until("the fault to hit", secs(60), || (self.proxy.fired() >= least).then_some(()));
        if goes {
            assert!(running.is_running(), "the job was to outlive the fault");
            self.proxy.set(Fault::None);
        }
        let done = running.wait().ok();
        let said = self.said(&done);
        for word in words {
            assert!(said.contains(word), "the logs were to say `{word}`: {said}");
        }
        self.is_whole(&done);
        done
    }
}

#[test]
fn a_slow_store_delays_checkpoints_and_nothing_else() {
    let lab = Lab::new("a_slow_store_delays_checkpoints_and_nothing_else");
    let Some(job) = Job::new(&lab) else { return };
    // A checkpoint of some kilobytes takes a second or two.
    let slow = Fault::Slow { latency: Duration::from_millis(50), bytes_per_second: 8 << 10 };
    job.survives(slow, 10, false, &[]);
    let taken = job.steps().len();
    assert!(taken < (EPOCHS * ROWS / 10 / 40) as usize, "{taken} checkpoints: training was to go on meanwhile");
}

#[test]
fn a_store_that_throttles_is_asked_again() {
    let lab = Lab::new("a_store_that_throttles_is_asked_again");
    let Some(job) = Job::new(&lab) else { return };
    let throttled = Fault::Answer { status: 503, code: "SlowDown", one_passes_of: 2 };
    job.survives(throttled, 12, true, &["the store answers 503", "it is asked again", "the store answers again"]);
}

#[test] // HTTP 429
fn too_many_requests_are_made_more_slowly() {
    let lab = Lab::new("too_many_requests_are_made_more_slowly");
    let Some(job) = Job::new(&lab) else { return };
    let too_many = Fault::Answer { status: 429, code: "TooManyRequests", one_passes_of: 2 };
    job.survives(too_many, 12, true, &["the store answers 429", "it is asked again", "the store answers again"]);
}

#[test] // a right key, and no permission: no wait makes it better
fn a_missing_permission_is_told_at_once() {
    let lab = Lab::new("a_missing_permission_is_told_at_once");
    let Some(job) = Job::new(&lab) else { return };
    job.proxy.set(Fault::Answer { status: 403, code: "AccessDenied", one_passes_of: u64::MAX });
    let done = job.submit(EPOCHS).run().fails(1, &["refuses (AccessDenied)", "AWS_ACCESS_KEY_ID", "s3://"]);
    assert!(done.wall < secs(20), "{:?}", done.wall);
    assert!(job.proxy.fired() > 0, "nobody asked the store");
    job.proxy.set(Fault::None);
    let done = job.submit(EPOCHS).run().ok();
    job.is_whole(&done);
}

#[test]
fn rows_that_may_not_be_read_end_the_job_before_training() {
    let lab = Lab::new("rows_that_may_not_be_read_end_the_job_before_training");
    let Some(job) = Job::new(&lab) else { return };
    job.proxy.set(Fault::Answer { status: 403, code: "AccessDenied", one_passes_of: u64::MAX });
    let model = lab.path("local");
    let done = job.submit_to(&model.display().to_string(), EPOCHS).run();
    let done = done.fails(1, &["s3://tfos/line` refuses", "what they are allowed to do"]);
    assert!(checkpoints(&model).is_empty() && done.number("rows") == 0.0);
}

#[test]
fn a_file_that_vanishes_is_named_and_the_job_goes_on_when_it_is_back() {
    let lab = Lab::new("a_file_that_vanishes_is_named_and_the_job_goes_on_when_it_is_back");
    let Some(mut job) = Job::new(&lab) else { return };
    // An epoch's last file may have been read before the fault comes, and twice: the epoch after these has it still to read.
    job.epochs = 4;
    let folder = S3::folder(&lab, "line");
    let file = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let mut gate = lab.gate("gate");
    let running = job.in_the_middle(&gate);
    let aside = lab.path("aside");
    std::fs::rename(&file, &aside).unwrap();
    gate.open();
    running.wait().fails(1, &[&name, "does not exist"]);
    // What it was on is not what is there now.
    job.submit(job.epochs).run().fails(1, &["the training data, its query or its shuffling has changed"]);
    // Another file in its place, while a job is on it.
    let mut gate = lab.gate("gate-again");
    std::fs::rename(&aside, &file).unwrap();
    let mut running = job.submit(job.epochs).args_of(gate.arguments(10)).start();
    gate.reached(&mut running, &[0, 1]);
    // In one step: scans read ahead while trainers stand, and would find it gone in between.
    let other = lab.path("other");
    std::fs::hard_link(&file, &aside).unwrap();
    std::fs::write(&other, "no rows").unwrap();
    std::fs::rename(&other, &file).unwrap();
    gate.open();
    running.wait().fails(1, &[&name, "must not change while a job is on them"]);
    std::fs::rename(&aside, &file).unwrap();
    let done = job.submit(job.epochs).run().ok().says(&["resuming from step"]);
    job.is_whole(&done);
}

#[test]
fn errors_of_the_server_are_outlived() {
    let lab = Lab::new("errors_of_the_server_are_outlived");
    let Some(job) = Job::new(&lab) else { return };
    let down = Fault::Answer { status: 500, code: "InternalError", one_passes_of: u64::MAX };
    job.survives(down, 4, true, &["the store answers 500", "the store answers again"]);
}

#[test]
fn uploads_that_are_cut_are_made_again() {
    let lab = Lab::new("uploads_that_are_cut_are_made_again");
    let Some(job) = Job::new(&lab) else { return };
    // Parts, segments, journals, and manifests, which are created and not written.
    job.survives(Fault::CutUpload { times: 6, least: 100 }, 6, false, &["the store fails at PUT /tfos/model/"]);
}

#[test]
fn a_job_resumes_over_downloads_that_are_cut() {
    let lab = Lab::new("a_job_resumes_over_downloads_that_are_cut");
    let Some(job) = Job::new(&lab) else { return };
    let mut gate = lab.gate("gate");
    let running = job.in_the_middle(&gate);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    assert_none_left(lab.folder(), secs(5));
    gate.open();
    let newest = job.steps().last().copied().unwrap();
    job.proxy.set(Fault::CutDownload { times: 4, least: 100 });
    let done = job.submit(EPOCHS).run().ok().says(&[&format!("resuming from step {newest}")]);
    assert_eq!(job.proxy.fired(), 4, "the connections were to be cut");
    assert!(job.said(&done).contains("the store fails at GET /tfos"), "{}", job.said(&done));
    job.is_whole(&done);
}

#[test] // the listing shows neither the newest checkpoint nor the claim of the killed job
fn a_job_resumes_from_a_checkpoint_that_is_not_listed_yet() {
    let lab = Lab::new("a_job_resumes_from_a_checkpoint_that_is_not_listed_yet");
    let Some(job) = Job::new(&lab) else { return };
    job.proxy.set(Fault::ListsLate { by: secs(600) });
    let mut gate = lab.gate("gate");
    let running = job.in_the_middle(&gate);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    assert_none_left(lab.folder(), secs(5));
    gate.open();
    let newest = job.steps().last().copied().unwrap();
    let done = job.submit(EPOCHS).run().ok().says(&[&format!("resuming from step {newest}")]);
    assert!(job.proxy.fired() > 0, "the listings were to lack something");
    assert_eq!(done.number("generation"), 2.0);
    job.is_whole(&done);
}
