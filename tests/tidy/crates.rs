//! Which crate may use which, and in which files the heavy crates may be named.

use crate::tree::{Tree, code_of, has_word};

/// Crate, and the crates of this workspace that it may use. A new line here is a change of the third kind
/// (CONTRIBUTING.md): ARCHITECTURE.md says why.
const EDGES: [(&str, &[&str]); 10] = [
    ("tfos-core", &[]),
    ("tfos-data", &["tfos-core"]),
    ("tfos-fuzz", &["tfos-data"]),
    ("tfos-ps", &["tfos-core"]),
    ("tfos-driver", &["tfos-core", "tfos-data"]),
    ("tfos-executor", &["tfos-core", "tfos-data", "tfos-ps"]),
    ("tfos", &["tfos-core", "tfos-data", "tfos-driver", "tfos-executor"]),
    ("tfos-examples", &["tfos"]),
    ("tfos-tests", &["tfos"]),
    ("xtask", &[]),
];

/// A crate with a home: the words that name it, and the paths that may. A path ending in `/` is a folder, any
/// other a prefix of the file's path.
struct Home {
    words: &'static [&'static str],
    paths: &'static [&'static str],
    /// Names that any file or folder on the way to the source file may have.
    names: &'static [&'static str],
    why: &'static str,
}

const HOMES: [Home; 6] = [
    Home {
        words: &["tch::", "use tch;", "torch_sys::"],
        paths: &["executor/src/torch/", "tfos/src/apps/", "tfos/src/lib.rs", "tfos/src/model.rs", "examples/"],
        names: &["error"], // an error keeps the type of its source
        why: "everything else must build and be tested without libtorch; name crate::torch's own types",
    },
    Home {
        words: &["clap::", "clap_complete::"],
        paths: &["tfos/src/cli/", "examples/"],
        names: &["args"], // only below tfos/src/apps, see `is_home`
        why: "parsed arguments leave there as plain structs",
    },
    Home {
        words: &["serde_yaml::"],
        paths: &["tfos/core/src/config/raw.rs"],
        names: &[],
        why: "settings are text only until they are checked",
    },
    Home {
        words: &["datafusion::", "datafusion_proto::"],
        paths: &[
            "tfos/data/",
            "driver/src/plan",
            "driver/src/ledger",
            "driver/src/engine",
            "executor/src/feed",
            "executor/src/engine/",
            "tfos/src/apps/",
            "tfos/src/error.rs",
            "tfos/src/lib.rs",
            "examples/",
            "tests/src/bin/",
            "tfos/src/cluster",
        ],
        names: &[],
        why: "a plan is bytes to everybody who does not make or run it",
    },
    Home {
        words: &["ballista_core::", "ballista_scheduler::", "ballista_executor::"],
        paths: &["tfos/data/src/ballista/", "driver/src/engine", "executor/src/engine/"],
        names: &[],
        why: "everything else builds without it, and hears of files that are written",
    },
    Home {
        words: &["tonic::"],
        paths: &["executor/ps/src/transport/grpc/"],
        names: &["proto", "server", "client", "error"],
        why: "generated types stop there; the rest speaks the crate's own types",
    },
];

fn is_home(home: &Home, path: &str) -> bool {
    let in_path = home.paths.iter().any(|p| path.starts_with(p));
    let in_name = path.split('/').any(|part| home.names.contains(&part.trim_end_matches(".rs")));
    let args = home.names.contains(&"args");
    in_path || (in_name && (!args || path.starts_with("tfos/src/apps/")))
}

/// Uses of a heavy crate outside its home.
pub(crate) fn homes(tree: &Tree) -> Vec<String> {
    let mut problems = vec![];
    for file in tree.with_extension("rs").filter(|f| !f.path.starts_with("tests/tidy/")) {
        for home in HOMES.iter().filter(|home| !is_home(home, &file.path)) {
            for (number, line) in file.lines() {
                // Arrow comes through DataFusion's re-export and is vocabulary, not engine.
                let code = code_of(line).replace("datafusion::arrow", "arrow");
                if let Some(word) = home.words.iter().find(|w| has_word(&code, w)) {
                    let homes: Vec<_> = home.paths.iter().chain(home.names).copied().collect();
                    problems.push(format!(
                        "{}:{number} names `{word}`, whose home is {}: move the code there ({})",
                        file.path,
                        homes.join(", "),
                        home.why
                    ));
                }
            }
        }
    }
    problems
}

/// Name of the package and its dependencies of any kind, from the text of a `Cargo.toml`.
pub(crate) fn package_and_dependencies(manifest: &str) -> (Option<String>, Vec<String>) {
    let (mut section, mut package, mut dependencies) = (String::new(), None, vec![]);
    for line in manifest.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']).to_owned();
            // The form [dependencies.name].
            if let Some((_, name)) = section.split_once("dependencies.").filter(|_| !section.starts_with("workspace")) {
                dependencies.push(name.trim_matches('"').to_owned());
            }
            continue;
        }
        let key = line.split(['=', '.', ' ']).next().unwrap_or_default().trim_matches('"');
        if section == "package" && key == "name" {
            package = line.split('"').nth(1).map(str::to_owned);
        } else if section.ends_with("dependencies") && !section.starts_with("workspace") {
            dependencies.push(key.to_owned());
        }
    }
    (package, dependencies)
}

/// Edges between the workspace's crates that are not in the table, and crates that are not.
pub(crate) fn edges(tree: &Tree) -> Vec<String> {
    let mut problems = vec![];
    for manifest in tree.manifests() {
        let (Some(package), dependencies) = package_and_dependencies(&manifest.text) else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package) else {
            problems.push(format!(
                "{}: the crate `{package}` is new: say in ARCHITECTURE.md why it exists, then add it to EDGES in tests/tidy/crates.rs",
                manifest.path
            ));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| EDGES.iter().any(|(name, _)| name == d)) {
            if !allowed.contains(&dependency.as_str()) && *dependency != package {
                problems.push(format!(
                    "{}: `{package}` must not use `{dependency}` (it may use: {}); move what both need into tfos-core, or pass it in through a trait",
                    manifest.path,
                    if allowed.is_empty() { "no crate of this workspace".to_owned() } else { allowed.join(", ") }
                ));
            }
        }
    }
    problems
}
