//! The rules that no compiler checks, as tests over the text of the repository. Standard library only, so that
//! `rustc --test` alone can build it; `.ci/run` does so before anything else is compiled.

mod crates;
mod documents;
mod sources;
mod tree;

use tree::{File, Tree};

/// Fails with every problem at once; each says what to do about it.
fn expect_none(rule: &str, problems: Vec<String>) {
    assert!(problems.is_empty(), "{rule}:\n  - {}\n", problems.join("\n  - "));
}

#[test]
fn crates_depend_only_along_the_edges_of_the_architecture() {
    expect_none("edges between crates", crates::edges(&Tree::read()));
}

#[test]
fn heavy_crates_stay_in_their_homes() {
    expect_none("homes of heavy crates", crates::homes(&Tree::read()));
}

#[test]
fn every_source_file_begins_with_its_idea_and_is_short() {
    expect_none("files", sources::headers_and_sizes(&Tree::read()));
}

#[test]
fn nothing_is_left_unfinished_and_no_test_sleeps() {
    expect_none("code", sources::forbidden_words(&Tree::read()));
}

#[test]
fn every_invariant_is_named_by_a_test() {
    expect_none("invariants", sources::invariants(&Tree::read()));
}

#[test]
fn documents_are_short_and_their_links_lead_somewhere() {
    expect_none("documents", documents::sizes_and_links(&Tree::read()));
}

#[test]
fn commands_in_documents_exist() {
    expect_none("commands", documents::commands(&Tree::read()));
}

#[test]
fn no_file_names_a_folder_of_the_machine_it_was_written_on() {
    expect_none("machine paths", documents::machine_paths(&Tree::read()));
}

#[test] // the harness itself: a rule that finds nothing in bad text guards nothing
fn the_rules_find_what_they_look_for() {
    let bad = |path: &str, text: &str| Tree::of(vec![File::new(path, text)]);
    let code = format!("fn f() {{ {}!() }}\n", "todo");
    assert_eq!(sources::headers_and_sizes(&bad("a/src/x.rs", &code)).len(), 1);
    assert_eq!(sources::headers_and_sizes(&bad("a/src/x.rs", &format!("//! x\n{}", "\n".repeat(500)))).len(), 1);
    assert_eq!(sources::forbidden_words(&bad("a/src/x.rs", &code)).len(), 1);
    let nap = "thread::sleep(d);\n";
    assert_eq!(sources::forbidden_words(&bad("a/src/x.rs", nap)).len(), 0);
    assert_eq!(
        sources::forbidden_words(&bad("a/src/x.rs", &format!("#[cfg(test)]\nmod tests {{\n{nap}}}\n"))).len(),
        1
    );
    assert_eq!(sources::forbidden_words(&bad("tests/it/x.rs", nap)).len(), 1);
    assert_eq!(sources::invariants(&bad("a/src/x.rs", "//! - `ABC-1` it holds.\n")).len(), 1);
    let named = "//! - `ABC-1` it holds.\n// ABC-1: how\n#[test]\nfn a() {}\n#[test] // ABC-2\nfn b() {}\n";
    assert_eq!(sources::invariants(&bad("a/src/x.rs", named)).len(), 1, "only ABC-2, which is written nowhere");
    assert_eq!(crates::homes(&bad("driver/src/run.rs", "use tch::Tensor;\n")).len(), 1);
    assert_eq!(crates::homes(&bad("driver/src/run.rs", "let x = batch::len(); // tch::no\n")).len(), 0);
    let manifest =
        "[package]\nname = \"tfos-driver\"\n[dependencies]\ntfos-core.workspace = true\ntfos-executor = {}\n";
    assert_eq!(crates::edges(&bad("driver/Cargo.toml", manifest)).len(), 1);
    assert_eq!(documents::sizes_and_links(&bad("A.md", "[x](b.md) [y](https://e.org) [z](#here)\n")).len(), 1);
    let tool = ["/ro", "ot/.tools"].concat();
    assert_eq!(documents::machine_paths(&bad("a.sh", &format!("cd {tool}\n"))).len(), 1);
    assert_eq!(documents::commands(&bad("A.md", "```sh\ndeploy/nothing   # what\n```\n")).len(), 1);
}
