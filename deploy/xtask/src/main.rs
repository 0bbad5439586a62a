//! `cargo xtask TASK`: the words that developers and CI share. Standard library only, so that it builds in a second.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask check                        format, tidy, control plane without libtorch, clippy, documentation
cargo xtask test [--quick]               set-up and all tests; --quick leaves out whole clusters
cargo xtask kills [--kills N] [--seed S] whoever is killed at whatever moment, N times [1000]: each row exactly once
cargo xtask fmt                          format everything
cargo xtask bench NAME [--output json]   a bench of BENCHMARKS.md: submit, feed, memory, tfrecord, overhead, ledger
cargo xtask bench feed-peers [KEY=N...]  the feed beside DataLoader, Ray Data and tf.data; keys: mnist-rows,
                                         criteo-rows, repeat, rounds
cargo xtask bench checkpoint [OPTION...] checkpoints beside PyTorch's and TensorFlow's; --millions M, --rounds N, --dir D
cargo xtask bench convergence [OPTION]   accuracy and wall time under each --consistency; --epochs N, --only CASE
cargo xtask bench overlap [--rounds N]   sending during the backward pass, or after it, over wires of 1 to 4 Gb/s
cargo xtask bench ps [OPTION...]         gradients to ps and back beside PyTorch and TensorFlow; options as of ps_bench
cargo xtask bench scaling [OPTION...]    cost of a step against numbers of ps and workers; --seconds S for each
cargo xtask bench peers [SCRIPT ARG...]  a peer's script of ../shared/bench/peers; lists them without SCRIPT";

const BENCHES: [&str; 12] = [
    "submit",
    "feed",
    "feed-peers",
    "memory",
    "tfrecord",
    "overhead",
    "overlap",
    "ledger",
    "checkpoint",
    "convergence",
    "ps",
    "scaling",
];

/// What the checks of `.ci/run` are called there; it holds the commands, so that there is one list.
const CHECKS: [&str; 5] = ["fmt", "tidy", "control-plane", "clippy", "doc"];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => run(root().join(".ci/run"), CHECKS),
        ["test", rest @ ..] => run(root().join("deploy/test"), rest),
        ["kills", rest @ ..] => kills(rest),
        ["fmt"] => run("cargo", ["fmt", "--all"]),
        ["bench", "peers", rest @ ..] => peers(rest),
        ["bench", name, rest @ ..] if BENCHES.contains(name) => bench(name, rest),
        ["bench", ..] => usage(&format!("bench needs a name: {} or peers", BENCHES.join(", "))),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [task, ..] => usage(&format!("unknown or wrongly used task `{task}`")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            eprintln!("xtask: {message}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    message: String,
    code: u8,
}

type Done = Result<(), Failure>;

fn usage(message: &str) -> Done {
    Err(Failure { message: format!("{message}\n\n{USAGE}"), code: 2 })
}

/// The repository: two folders above this crate.
fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_owned()
}

/// Runs a program in the repository's root and passes its failure on.
fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Done {
    let name = Path::new(program.as_ref()).display().to_string();
    let mut command = Command::new(program.as_ref());
    command.args(arguments).current_dir(root());
    // cargo exports what it knows to the programs that it runs. Given back to cargo it looks like a change to the build
    // scripts of ring and of libtorch's bindings, and all that stands on them would be built anew, each time.
    for (name, value) in env::vars_os() {
        let own = name.to_str().is_some_and(|n| {
            ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
                .iter()
                .any(|prefix| n.starts_with(prefix))
        });
        if own || (name == "LIBTORCH" && value == *root().join(".tools/libtorch/torch")) {
            command.env_remove(name);
        }
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        // A signal has no code; 1 is what the shell's users expect of a failed task.
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Err(Failure { message: format!("{name}: {status}"), code })
        }
        Err(e) => Err(Failure { message: format!("{name} does not start: {e}"), code: 1 }),
    }
}

/// The test with kills at random moments, longer than in CI.
fn kills(rest: &[&str]) -> Done {
    let (mut number, mut seed, mut words) = ("1000", None, rest.iter());
    while let Some(word) = words.next() {
        match (*word, words.next()) {
            ("--kills", Some(n)) if n.parse::<u64>().is_ok() => number = n,
            ("--seed", Some(s)) if s.parse::<u64>().is_ok() => seed = Some(*s),
            _ => return usage(&format!("kills: `{word}` is not --kills N or --seed S")),
        }
    }
    run(root().join("deploy/setup"), [""; 0])?;
    let settings = [format!("TFOS_KILLS={number}")].into_iter().chain(seed.map(|s| format!("TFOS_KILLS_SEED={s}")));
    let test = ["cargo", "test", "--package", "tfos-tests", "--test", "e2e", "kills", "--", "--nocapture"];
    run("env", settings.chain(test.map(str::to_owned)))
}

fn bench(name: &str, rest: &[&str]) -> Done {
    match name {
        "tfrecord" => return bench_tfrecord(rest),
        "ps" => return bench_ps(rest),
        "scaling" => return bench_scaling(rest),
        "checkpoint" => return bench_checkpoint(rest),
        "feed-peers" => return bench_feed_peers(rest),
        // Without libtorch.
        "ledger" => return bench_ledger(rest),
        _ => {}
    }
    run(root().join("deploy/setup"), [""; 0])?;
    let mut arguments = vec!["run", "--quiet", "--package", "tfos-examples", "--bin", "tfos-bench", "--", name];
    arguments.extend(rest);
    run("cargo", arguments)
}

/// Ours and TensorFlow's reader over the same files, one after the other.
fn bench_tfrecord(rest: &[&str]) -> Done {
    run(root().join("deploy/setup"), ["--tensorflow"])?;
    run("cargo", ["build", "--quiet", "--workspace", "--bins", "--examples"])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let folder = env::temp_dir().join(format!("tfos-bench-tfrecord-{}", std::process::id()));
    let keep = folder.display().to_string();
    let mut arguments = vec!["--keep", keep.as_str()];
    arguments.extend(rest);
    let ours = run(target.join("debug/examples/tfrecord_bench"), arguments);
    let script = root().join("deploy/bench/tf_parse.py");
    let theirs =
        ours.and_then(|()| run(root().join(".tools/tensorflow/bin/python"), [script.as_os_str(), folder.as_os_str()]));
    let removed = std::fs::remove_dir_all(&folder);
    theirs?;
    removed.map_err(|e| Failure { message: format!("{keep} cannot be removed: {e}"), code: 1 })
}

fn bench_ledger(rest: &[&str]) -> Done {
    run("cargo", ["build", "--quiet", "--package", "tfos-driver", "--example", "ledger_bench"])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    run(target.join("debug/examples/ledger_bench"), rest)
}

/// Ours, PyTorch, Ray and TensorFlow in turn, on the same files.
fn bench_feed_peers(rest: &[&str]) -> Done {
    run(root().join("deploy/setup"), ["--tensorflow", "--bench"])?;
    let libtorch = env::var_os("LIBTORCH").map_or_else(|| root().join(".tools/libtorch/torch"), PathBuf::from);
    let torch = libtorch.parent().unwrap_or(&libtorch).display().to_string();
    let at = |path: &str| root().join(path).display().to_string();
    let own = [
        format!("scripts={}", at("deploy/bench")),
        format!("peers={}", at(".tools/peers/bin/python")),
        format!("torch={torch}"),
        format!("tensorflow={}", at(".tools/tensorflow/bin/python")),
    ];
    let program = ["run", "--quiet", "--package", "tfos-examples", "--bin", "tfos-bench", "--", "feed-peers"];
    run("cargo", program.into_iter().chain(own.iter().map(String::as_str)).chain(rest.iter().copied()))
}

/// Ours, PyTorch and TensorFlow in turn, on one model.
fn bench_ps(rest: &[&str]) -> Done {
    run(root().join("deploy/setup"), ["--tensorflow"])?;
    // This package alone builds in a minute: it needs neither libtorch nor DataFusion.
    run("cargo", ["build", "--quiet", "--package", "tfos-ps", "--features", "grpc", "--example", "ps_bench"])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let (torch, packages) = torch_python();
    let program = target.join("debug/examples/ps_bench");
    let scripts = root().join("deploy/bench");
    let tensorflow = root().join(".tools/tensorflow/bin/python");
    let own = ["--scripts".as_ref(), scripts.as_os_str(), "--tensorflow".as_ref(), tensorflow.as_os_str()];
    let torch = ["--torch".as_ref(), torch.as_os_str(), "--torch-packages".as_ref(), packages.as_os_str()];
    run(program, own.into_iter().chain(torch).chain(rest.iter().map(|argument| OsStr::new(*argument))))
}

/// No peer has part in it.
fn bench_scaling(rest: &[&str]) -> Done {
    let own =
        ["run", "--quiet", "--package", "tfos-ps", "--features", "grpc", "--example", "ps_bench", "--", "scaling"];
    run("cargo", own.iter().chain(rest))
}

/// Checkpoints on the disk and on an S3 server, PyTorch's and TensorFlow's, in turn.
fn bench_checkpoint(rest: &[&str]) -> Done {
    run(root().join("deploy/setup"), ["--tensorflow", "--safetensors", "--s3"])?;
    run("cargo", ["build", "--quiet", "--workspace", "--bins"])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let folder = env::temp_dir().join(format!("tfos-bench-s3-{}", std::process::id()));
    let done = served(&folder, |port| {
        let python = |script: &str| root().join("deploy/bench").join(script).display().to_string();
        let (torch, packages) = torch_python();
        // The second folder has numpy, which distributed checkpoints want.
        let numpy = root().join(".tools/safetensors");
        let paths = format!("{}:{}", packages.display(), numpy.display());
        let torch = format!("PYTHONPATH={paths} {} {}", torch.display(), python("torch_checkpoint.py"));
        let tensorflow = root().join(".tools/tensorflow/bin/python").display().to_string();
        let peers = [
            format!("torch.save={torch} save"),
            format!("torch dcp.save={torch} dcp"),
            format!("torch dcp.async_save={torch} async"),
            format!("TensorFlow async={tensorflow} {}", python("tf_checkpoint.py")),
        ];
        let mut arguments = vec!["checkpoint".to_owned(), "--s3".into(), "s3://tfos/bench".into()];
        arguments.extend(peers.into_iter().flat_map(|peer| ["--peer".to_owned(), peer]));
        arguments.extend(rest.iter().map(|argument| (*argument).to_owned()));
        // Of a server that lives as long as this command, on the loopback.
        let settings = [
            ("AWS_ACCESS_KEY_ID", S3_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", S3_KEY.to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        let program = target.join("debug/tfos-bench");
        let words = settings.iter().map(|(k, v)| format!("{k}={v}")).chain([program.display().to_string()]);
        run("env", words.chain(arguments))
    });
    let _ = std::fs::remove_dir_all(&folder);
    done
}

/// Key and secret of the server of a benchmark.
const S3_KEY: &str = "bench";

/// Runs `work` while the S3 server of the tests serves the bucket `tfos` from `folder`.
fn served(folder: &Path, work: impl FnOnce(u16) -> Done) -> Done {
    let failed = |e: std::io::Error| Failure { message: format!("the S3 server: {e}"), code: 1 };
    std::fs::create_dir_all(folder.join("tfos")).map_err(failed)?;
    // Released for the server, which does not tell which port it was given if it is asked to choose.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(failed)?;
    let address = free.to_string();
    let mut server = Command::new(root().join(".tools/s3/versitygw"))
        .args(["--port", &address, "--quiet", "--access", S3_KEY, "--secret", S3_KEY, "posix"])
        .arg(folder)
        .spawn()
        .map_err(failed)?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::net::TcpStream::connect(free).is_err() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let done = work(free.port());
    let _ = server.kill();
    let _ = server.wait();
    done
}

/// The Python that imports PyTorch, and where the packages are.
fn torch_python() -> (PathBuf, PathBuf) {
    let tools = env::var_os("TFOS_TOOLS").map_or_else(|| root().join(".tools"), PathBuf::from);
    // The wheel is for the Python that installed it: that of the venv, or of a LIBTORCH of your own, yours.
    let venv = tools.join("venv/bin/python");
    let own = || env::var_os("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let libtorch = env::var_os("LIBTORCH").map_or_else(|| root().join(".tools/libtorch/torch"), PathBuf::from);
    (if venv.is_file() { venv } else { own() }, libtorch.parent().unwrap_or(&libtorch).to_owned())
}

/// A peer's script with the Python of `.tools/tensorflow`, or of another environment in `PEERS_PYTHON`: each script
/// says at its top which packages it needs, and `setup.sh` beside them makes environments with those.
fn peers(rest: &[&str]) -> Done {
    let folder = root().join("../shared/bench/peers");
    let Ok(entries) = folder.read_dir() else {
        return Err(Failure { message: format!("there are no peers' scripts at {}", folder.display()), code: 1 });
    };
    let Some((script, arguments)) = rest.split_first() else {
        let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        println!("{}", names.join("\n"));
        return Ok(());
    };
    let python = match env::var_os("PEERS_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => {
            run(root().join("deploy/setup"), ["--tensorflow"])?;
            root().join(".tools/tensorflow/bin/python")
        }
    };
    let script = folder.join(script);
    run(python, [script.as_os_str()].into_iter().chain(arguments.iter().map(|a| OsStr::new(*a))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace_and_the_scripts_that_tasks_call() {
        for path in ["Cargo.toml", "deploy/setup", "deploy/test", ".ci/run"] {
            assert!(root().join(path).is_file(), "{path}");
        }
    }

    #[test]
    fn a_wrong_task_is_a_usage_error_and_a_failed_one_keeps_its_code() {
        assert_eq!(usage("x").unwrap_err().code, 2);
        assert_eq!(run("sh", ["-c", "exit 3"]).unwrap_err().code, 3);
        assert!(run("/nonexistent/program", [""; 0]).unwrap_err().message.contains("does not start"));
    }
}
