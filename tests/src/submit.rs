//! A job as a user submits it: `tfos submit … --output json`, its output, its exit code, and the logs of its nodes
//! when the test fails.
#![expect(clippy::expect_used, clippy::panic, reason = "the harness of tests ends a test by a panic")]

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{bin, logs, procs, wait};

/// A command to run.
#[derive(Debug)]
pub struct Submit {
    program: PathBuf,
    words: Vec<String>,
    application: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, Option<String>)>,
    through: Vec<String>,
    model_dir: Option<PathBuf>,
    deadline: Duration,
}

impl Submit {
    /// `tfos submit --output json APPLICATION`.
    pub fn new(application: &str) -> Self {
        let mut submit = Self::tfos("submit --output json");
        submit.application = Some(application.to_owned());
        submit
    }

    /// Any command of `tfos`.
    pub fn tfos(words: &str) -> Self {
        Self::program(bin::tfos()).flags(words)
    }

    /// Any program.
    pub fn program(program: PathBuf) -> Self {
        // What the person who runs the tests has set must not change what they see.
        let cleared = ["CUDA_VISIBLE_DEVICES", "TFOS_GPUS", "TFOS_LOG", "TFOS_TOKEN", "KUBERNETES_SERVICE_HOST"];
        let cleared = cleared.into_iter().chain(["TFOS_DRIVER_BIND", "TFOS_DRIVER_HOST", "TFOS_DRIVER_PORT"]);
        Self {
            program,
            words: vec![],
            application: None,
            arguments: vec![],
            environment: cleared.map(|name| (name.to_owned(), None)).collect(),
            through: vec![],
            model_dir: None,
            deadline: wait::secs(120),
        }
    }

    /// Flags, divided at white space.
    pub fn flags(mut self, flags: &str) -> Self {
        self.words.extend(flags.split_whitespace().map(str::to_owned));
        self
    }

    /// One flag whose value may hold white space.
    pub fn flag(mut self, flag: &str, value: impl AsRef<Path>) -> Self {
        self.words.extend([flag.to_owned(), value.as_ref().display().to_string()]);
        self
    }

    /// `--model-dir`, where the logs will be; the last call counts.
    pub fn model_dir(mut self, folder: &Path) -> Self {
        self.model_dir = Some(folder.to_path_buf());
        self
    }

    /// Arguments of the application, divided at white space.
    pub fn args(mut self, arguments: &str) -> Self {
        self.arguments.extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// Arguments of the application as they are.
    pub fn args_of<T: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), Some(value.to_owned())));
        self
    }

    /// Words before the command, such as `ip netns exec NAME`.
    pub fn through(mut self, words: &str) -> Self {
        self.through = words.split_whitespace().map(str::to_owned).collect();
        self
    }

    /// How long it may take [2 minutes].
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it in a process group of its own.
    pub fn start(self) -> Running {
        let own = [self.program.display().to_string()];
        let model_dir = self.model_dir.iter().flat_map(|d| ["--model-dir".to_owned(), d.display().to_string()]);
        let options: Vec<String> = self.words.iter().cloned().chain(model_dir).collect();
        let words: Vec<&String> = self.through.iter().chain(&own).chain(&options).chain(&self.application).collect();
        let (first, rest) = words.split_first().expect("a command has a program");
        let mut command = Command::new(first);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if !self.arguments.is_empty() {
            command.arg("--").args(&self.arguments);
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let line = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        let stdout = Stream::read(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Stream::read(child.stderr.take().expect("stderr is a pipe"));
        let begun = Instant::now();
        Running { line, child, stdout, stderr, begun, deadline: self.deadline, model_dir: self.model_dir, ended: None }
    }

    /// Runs it to its end.
    pub fn run(self) -> Done {
        self.start().wait()
    }
}

/// What a process has written so far.
#[derive(Debug)]
struct Stream {
    text: Arc<Mutex<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = pipe.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                let more = String::from_utf8_lossy(bytes.get(..n).unwrap_or_default()).into_owned();
                shared.lock().unwrap_or_else(PoisonError::into_inner).push_str(&more);
            }
        });
        Self { text, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn finish(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            // A process that inherited the pipe may hold it open; the test does not wait for that one.
            wait::poll(wait::secs(2), || thread.is_finished().then_some(()));
        }
        self.so_far()
    }
}

/// A process under way; killed with its group when dropped. Shows itself and the nodes' logs when the test panics.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    begun: Instant,
    deadline: Duration,
    model_dir: Option<PathBuf>,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has written to stderr.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Sends it, and nobody else, a signal.
    pub fn signal(&self, signal: procs::Signal) {
        procs::signal(self.pid(), signal);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for a line on stderr and returns it.
    pub fn says(&mut self, words: &str) -> String {
        let deadline = self.deadline.saturating_sub(self.begun.elapsed());
        let found = wait::poll(deadline, || {
            let ended = self.poll().is_some();
            let text = if ended { self.stderr.finish() } else { self.stderr.so_far() };
            let line = text.lines().find(|l| l.contains(words)).map(str::to_owned);
            line.map(Some).or_else(|| ended.then_some(None))
        });
        match found.flatten() {
            Some(line) => line,
            None => panic!("`{words}` was never said"),
        }
    }

    /// Waits until a checkpoint of at least this step is committed.
    pub fn until_checkpoint(&mut self, step: u64) -> u64 {
        let folder = self.model_dir.clone().unwrap_or_default();
        let deadline = self.deadline.saturating_sub(self.begun.elapsed());
        let found = wait::poll(deadline, || {
            let found = checkpoints(&folder).last().copied().filter(|s| *s >= step);
            found.map(Some).or_else(|| (!self.is_running()).then_some(None))
        });
        match found.flatten() {
            Some(found) => found,
            None => panic!("no checkpoint of step {step} appeared"),
        }
    }

    /// Waits for its end; after the deadline the whole group is killed and the test fails.
    pub fn wait(mut self) -> Done {
        let left = self.deadline.saturating_sub(self.begun.elapsed());
        let ended = wait::poll(left, || self.poll());
        let Some(status) = ended else {
            panic!("it did not end within {:?}", self.deadline);
        };
        let wall = self.begun.elapsed();
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        let json = stdout.lines().rev().find(|l| l.starts_with('{')).and_then(|l| serde_json::from_str(l).ok());
        Done {
            line: self.line.clone(),
            status,
            json: json.unwrap_or(Value::Null),
            stdout,
            stderr,
            wall,
            model_dir: self.model_dir.clone(),
        }
    }

    fn report(&self) -> String {
        let logs = self.model_dir.as_ref().map(|d| logs::tails(&d.join("job"))).unwrap_or_default();
        let (out, err) = (self.stdout.so_far(), self.stderr.so_far());
        format!("\n$ {}\nstdout:\n{out}\nstderr:\n{err}\n{logs}", self.line)
    }
}

impl Drop for Running {
    #[expect(clippy::print_stderr, reason = "what a failed test has to show")]
    fn drop(&mut self) {
        let ended = self.ended.is_some();
        if std::thread::panicking() && !ended {
            eprintln!("{}", self.report());
        }
        if self.poll().is_none() {
            procs::kill_group(self.pid());
            let _ = self.child.wait();
        }
    }
}

/// A process that has ended. When the test panics while it is there, it shows itself and the nodes' logs.
#[derive(Debug)]
pub struct Done {
    line: String,
    status: ExitStatus,
    /// The last line of stdout that is a JSON object, or null.
    pub json: Value,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
    /// From start to end.
    pub wall: Duration,
    model_dir: Option<PathBuf>,
}

impl Done {
    /// Exit code, if no signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Exit code 0.
    pub fn ok(self) -> Self {
        assert_eq!(self.code(), Some(0), "it was to succeed");
        self
    }

    /// This exit code, and a message on stderr with all of these words.
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "the exit code was to be {code}");
        self.says(words)
    }

    /// A message on stderr with all of these words.
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "stderr was to contain `{word}`");
        }
        self
    }

    /// The one line on stderr that begins with `error: `; there have to be no more.
    pub fn error(&self) -> String {
        let lines: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "one message was to be on stderr");
        lines.first().map(|l| (*l).to_owned()).unwrap_or_default()
    }

    /// A number of the JSON summary, by keys with `.` between them.
    pub fn number(&self, path: &str) -> f64 {
        let value = path.split('.').fold(&self.json, |v, key| v.get(key).unwrap_or(&Value::Null));
        value.as_f64().unwrap_or_else(|| panic!("the summary was to have a number `{path}`, it is {value}"))
    }

    /// A text of the JSON summary.
    pub fn text(&self, path: &str) -> &str {
        let value = path.split('.').fold(&self.json, |v, key| v.get(key).unwrap_or(&Value::Null));
        value.as_str().unwrap_or_else(|| panic!("the summary was to have a text `{path}`, it is {value}"))
    }

    /// Text of all logs of the nodes, over all generations.
    pub fn logs(&self) -> String {
        self.model_dir.as_ref().map(|d| logs::text(&d.join("job"))).unwrap_or_default()
    }
}

impl Drop for Done {
    #[expect(clippy::print_stderr, reason = "what a failed test has to show")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.model_dir.as_ref().map(|d| logs::tails(&d.join("job"))).unwrap_or_default();
            eprintln!("\n$ {}\n{} after {:.1?}", self.line, self.status, self.wall);
            eprintln!("stdout:\n{}\nstderr:\n{}\n{logs}", self.stdout, self.stderr);
        }
    }
}

/// Steps of the committed checkpoints of a model directory, in order.
pub fn checkpoints(model_dir: &Path) -> Vec<u64> {
    let folders = std::fs::read_dir(model_dir.join("checkpoints")).into_iter().flatten().flatten();
    let committed = folders.filter(|f| f.path().join("manifest.json").exists());
    let mut steps: Vec<u64> = committed.filter_map(|f| f.file_name().to_str()?.parse().ok()).collect();
    steps.sort();
    steps
}
