//! Rules for documents: their length, their links, their commands, the invariants they cite, and no paths of a machine.

use crate::crates::package_and_dependencies;
use crate::sources::{ids_in, stated_invariants};
use crate::tree::{File, Tree};

const MAX_LINES: [(&str, usize); 2] = [("ARCHITECTURE.md", 300), ("CONTRIBUTING.md", 120)];

/// Documents that are too long, links to nothing, and invariants that the code does not state.
pub(crate) fn sizes_and_links(tree: &Tree) -> Vec<String> {
    let mut problems = vec![];
    for (path, limit) in MAX_LINES {
        let lines = tree.get(path).map_or(0, |f| f.text.lines().count());
        if lines > limit {
            problems
                .push(format!("{path}: {lines} lines, {limit} are the limit: cut it, or move detail beside the code"));
        }
    }
    let stated = stated_invariants(tree);
    for file in tree.with_extension("md") {
        for (number, line) in file.lines() {
            for target in links(line) {
                if !leads_somewhere(tree, file, target) {
                    problems.push(format!(
                        "{}:{number}: the link to `{target}` leads nowhere inside the repository; correct or remove it",
                        file.path
                    ));
                }
            }
            for id in ids_in(line).filter(|_| file.path == "ARCHITECTURE.md") {
                let known = |kind: &str| stated.keys().any(|s| s.split('-').next() == Some(kind));
                if !stated.contains_key(id) && id.split('-').next().is_some_and(known) {
                    problems.push(format!("{}:{number}: {id} is stated in no `//!`; correct the id", file.path));
                }
            }
        }
    }
    problems
}

/// Targets of `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn leads_somewhere(tree: &Tree, file: &File, target: &str) -> bool {
    let path = target.split('#').next().unwrap_or_default();
    if target.contains("://") || target.starts_with("mailto:") || path.is_empty() {
        return true;
    }
    let mut parts: Vec<&str> = file.path.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return false;
                }
            }
            part => parts.push(part),
        }
    }
    tree.has(&parts.join("/"))
}

/// Commands of shell blocks in the documents that name nothing that exists.
pub(crate) fn commands(tree: &Tree) -> Vec<String> {
    let mut problems = vec![];
    for file in tree.with_extension("md") {
        let mut in_shell = false;
        for (number, line) in file.lines() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                in_shell = !in_shell && matches!(language.trim(), "sh" | "bash" | "console");
                continue;
            }
            let command = line.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
            if !in_shell || command.is_empty() || command.starts_with('#') {
                continue;
            }
            if let Some(problem) = wrong_with(tree, command) {
                problems.push(format!("{}:{number}: `{command}`: {problem}", file.path));
            }
        }
    }
    problems
}

/// What does not exist of a command. Only this repository's own commands are looked at.
fn wrong_with(tree: &Tree, command: &str) -> Option<String> {
    // Settings before the command, as in `NAME=value command`.
    let words: Vec<_> = command.split_whitespace().skip_while(|w| w.contains('=') && !w.starts_with('-')).collect();
    let first = words.first()?.trim_start_matches("./");
    match first {
        "cargo" => wrong_with_cargo(tree, &words),
        "tfos" => wrong_with_tfos(tree, words.get(1..)?),
        _ if first.ends_with("/tfos") => wrong_with_tfos(tree, words.get(1..)?),
        _ if first.contains('/') && !first.starts_with(['.', '/', '$', '~']) || first.starts_with(".ci/") => {
            match tree.get(first) {
                None => Some(format!("there is no `{first}`; correct the document")),
                Some(file) if !file.executable => Some(format!("`{first}` cannot be executed; run chmod +x {first}")),
                Some(_) => None,
            }
        }
        _ => None,
    }
}

fn wrong_with_cargo(tree: &Tree, words: &[&str]) -> Option<String> {
    if words.get(1) == Some(&"xtask") {
        let task = words.get(2)?;
        let source = tree.get("deploy/xtask/src/main.rs").map_or("", |f| f.text.as_str());
        return (!source.contains(&format!("\"{task}\""))).then(|| format!("`cargo xtask` knows no `{task}`"));
    }
    let options = words.iter().take_while(|w| **w != "--");
    for (option, value) in options.clone().zip(options.skip(1)) {
        let exists = match *option {
            "--package" | "-p" => has_package(tree, value),
            "--bin" => has_package(tree, value) || has_target(tree, "bin", value),
            "--example" => has_target(tree, "examples", value),
            "--test" => has_target(tree, "tests", value),
            _ => true,
        };
        if !exists {
            return Some(format!("there is no {} `{value}` in the workspace", option.trim_start_matches('-')));
        }
    }
    let rest = words.iter().position(|w| *w == "--").and_then(|at| words.get(at + 1..));
    let is_tfos = words.windows(2).any(|w| *w == ["--bin", "tfos"]);
    rest.filter(|_| is_tfos).and_then(|rest| wrong_with_tfos(tree, rest))
}

fn has_package(tree: &Tree, name: &str) -> bool {
    tree.manifests().any(|m| package_and_dependencies(&m.text).0.as_deref() == Some(name))
}

/// A target by the place of its source file or by an entry in a manifest.
fn has_target(tree: &Tree, folder: &str, name: &str) -> bool {
    let (file, nested) = (format!("{folder}/{name}.rs"), format!("{folder}/{name}/main.rs"));
    tree.files.iter().any(|f| f.path.ends_with(&file) || f.path.ends_with(&nested))
        || tree.manifests().any(|m| m.text.contains(&format!("\nname = \"{name}\"")))
}

/// The first word must be a subcommand, and each flag before `--` a setting or an option of the command line. Both
/// are looked for by name in the sources of the command line and the built-in applications.
fn wrong_with_tfos(tree: &Tree, words: &[&str]) -> Option<String> {
    let sources: Vec<_> = tree
        .with_extension("rs")
        .filter(|f| f.path.starts_with("tfos/src/") || f.path == "tfos/core/src/config/raw.rs")
        .collect();
    let named = |name: &str| {
        let snake = name.replace('-', "_");
        let pascal: String = name.split('-').map(capital).collect();
        sources.iter().any(|f| {
            let is_name = |t: &str| [name, snake.as_str(), pascal.as_str()].contains(&t);
            f.text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).any(is_name)
        })
    };
    for word in words.iter().take_while(|w| **w != "--") {
        let flag = word.strip_prefix("--").and_then(|f| f.split('=').next());
        match flag {
            None | Some("help" | "version" | "") => {}
            Some(flag) if !named(flag) => return Some(format!("`tfos` has no option --{flag}")),
            Some(_) => {}
        }
    }
    let subcommand = words.first().filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase()))?;
    (!named(subcommand)).then(|| format!("`tfos` has no subcommand {subcommand}"))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Places on one machine's disk, which are different on the next.
pub(crate) fn machine_paths(tree: &Tree) -> Vec<String> {
    let roots = [["/wo", "rk"].concat(), ["/ro", "ot"].concat()];
    let mut problems = vec![];
    for file in tree.files.iter().filter(|f| f.path != "Cargo.lock") {
        for (number, line) in file.lines() {
            for root in &roots {
                let found = line.match_indices(root.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + root.len()..].chars().next();
                    // "a/work" and "/workers" are something else.
                    before.is_none_or(|c| c.is_whitespace() || "\"'`(=:,<[".contains(c))
                        && after.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '-'))
                });
                if found {
                    problems.push(format!(
                        "{}:{number}: names {root}, a folder of one machine; use a path relative to the repository",
                        file.path
                    ));
                }
            }
        }
    }
    problems
}
