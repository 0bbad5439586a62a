//! Rules for Rust files: their first line, their length, words that must not be left, and invariants with tests.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{File, Tree, code_of, has_word};

const MAX_LINES: usize = 500;

/// The one place of the tests that may wait by the clock: it polls a condition until a deadline.
const WAIT: &str = "tests/src/wait.rs";

/// Files without a `//!` first line, and long ones.
pub(crate) fn headers_and_sizes(tree: &Tree) -> Vec<String> {
    let mut problems = vec![];
    for file in tree.with_extension("rs") {
        if !file.text.starts_with("//! ") {
            problems.push(format!("{}: begin it with `//! ` and the one idea of the file", file.path));
        }
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            problems.push(format!(
                "{}: {lines} lines, {MAX_LINES} are the limit: split it by idea, or move its tests to a tests.rs beside it",
                file.path
            ));
        }
    }
    problems
}

/// Whether every line of the file is test code.
fn is_test_file(path: &str) -> bool {
    let mut parts: Vec<_> = path.trim_end_matches(".rs").split('/').collect();
    let stem = parts.pop().unwrap_or_default();
    parts.contains(&"tests") || stem == "tests" || stem.ends_with("_tests")
}

/// Number of the first line of the module `#[cfg(test)] mod … {`, if there is one.
fn inline_tests(file: &File) -> Option<usize> {
    let lines: Vec<_> = file.text.lines().map(str::trim).collect();
    let at = lines.windows(2).position(|w| w[0] == "#[cfg(test)]" && w[1].starts_with("mod ") && w[1].ends_with('{'));
    at.map(|at| at + 1)
}

/// Unfinished code anywhere, and naps in tests.
pub(crate) fn forbidden_words(tree: &Tree) -> Vec<String> {
    let unfinished = [["to", "do!"].concat(), ["unimple", "mented!"].concat()];
    let mut problems = vec![];
    for file in tree.with_extension("rs").filter(|f| !f.path.starts_with("tests/tidy/")) {
        let tests_from = if is_test_file(&file.path) { Some(1) } else { inline_tests(file) };
        for (number, line) in file.lines() {
            let code = code_of(line);
            if let Some(word) = unfinished.iter().find(|w| has_word(code, w)) {
                problems.push(format!(
                    "{}:{number}: `{word}` is left; write it, or return an error that says so",
                    file.path
                ));
            }
            let in_test = tests_from.is_some_and(|from| number >= from);
            if in_test && has_word(code, "sleep(") && file.path != WAIT {
                problems.push(format!(
                    "{}:{number}: a test sleeps; wait for a condition with a deadline instead ({WAIT} does)",
                    file.path
                ));
            }
        }
    }
    problems
}

/// `ABC-12` at the beginning of `text`.
fn id_at_start(text: &str) -> Option<&str> {
    let letters = text.bytes().take_while(u8::is_ascii_uppercase).count();
    let rest = text.get(letters..)?.strip_prefix('-')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    ((2..=4).contains(&letters) && digits > 0).then(|| &text[..letters + 1 + digits])
}

/// Every `ABC-12` in `text` that is a word of its own.
pub(crate) fn ids_in(text: &str) -> impl Iterator<Item = &str> {
    let starts_word = |at: usize| !text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '-');
    text.char_indices().filter(move |(at, _)| starts_word(*at)).filter_map(|(at, _)| id_at_start(&text[at..]))
}

/// The invariant that a `//!` line states: an id at the beginning of a list item or of the line.
fn stated(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//!")?.trim_start();
    let text = text.strip_prefix("- ").or(text.strip_prefix("* ")).unwrap_or(text);
    let text = text.trim_start_matches(['`', '*']);
    let id = id_at_start(text)?;
    // "UTF-8 text …" in a sentence is no invariant; a statement ends its id with a mark.
    text[id.len()..].starts_with(['`', '*', ':']).then_some(id)
}

/// Invariants by id, with the place where each is stated.
pub(crate) fn stated_invariants(tree: &Tree) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in tree.with_extension("rs").filter(|f| !f.path.starts_with("tests/tidy/")) {
        for (number, line) in file.lines() {
            if let Some(id) = stated(line) {
                found.entry(id.to_owned()).or_default().push(format!("{}:{number}", file.path));
            }
        }
    }
    found
}

/// Ids in the comments on and above each `#[test]`, with their places.
fn named_by_tests(file: &File) -> Vec<(String, usize)> {
    let lines: Vec<_> = file.text.lines().map(str::trim).collect();
    let belongs = |line: &&str| line.starts_with("//") || line.starts_with("#[");
    let mut named = vec![];
    for (at, line) in lines.iter().enumerate() {
        if !(line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
            continue;
        }
        let above = lines[..at].iter().rev().take_while(|l| belongs(l)).count();
        let below = lines[at..].iter().take_while(|l| belongs(l)).count();
        // The line of the `fn` may carry the comment too.
        for line in &lines[at - above..(at + below + 1).min(lines.len())] {
            let comment = line.find("//").map_or("", |from| &line[from..]);
            named.extend(ids_in(comment).map(|id| (id.to_owned(), at + 1)));
        }
    }
    named
}

/// Invariants stated twice or named by no test, and tests that name one which is stated nowhere.
pub(crate) fn invariants(tree: &Tree) -> Vec<String> {
    let stated = stated_invariants(tree);
    let kinds: BTreeSet<_> = stated.keys().filter_map(|id| id.split('-').next()).collect();
    let mut named = BTreeSet::new();
    let mut problems = vec![];
    for file in tree.with_extension("rs").filter(|f| !f.path.starts_with("tests/tidy/")) {
        for (id, line) in named_by_tests(file) {
            // Only kinds that exist here: "CRC-32" in a comment is something else.
            if !stated.contains_key(&id) && id.split('-').next().is_some_and(|kind| kinds.contains(kind)) {
                problems.push(format!(
                    "{}:{line}: a test names {id}, which no `//!` states; correct the id or state it",
                    file.path
                ));
            }
            named.insert(id);
        }
    }
    for (id, places) in &stated {
        if let [first, others @ ..] = places.as_slice() {
            if !others.is_empty() {
                problems.push(format!("{id} is stated in {}: state it once and refer to it", places.join(" and ")));
            }
            if !named.contains(id) {
                problems.push(format!("{first}: no test names {id}; write one, with `// {id}` on its #[test] line"));
            }
        }
    }
    problems
}
