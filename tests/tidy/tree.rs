//! The text files of the repository, read once, and small tools to look at them.

use std::fs;
use std::path::{Path, PathBuf};

/// A text file.
#[derive(Debug)]
pub(crate) struct File {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) executable: bool,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), executable: false }
    }

    /// Lines with their numbers, from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

/// What builds, runs and tools leave in a clone; the same as in `.gitignore`.
fn is_ignored(name: &str, at_root: bool) -> bool {
    matches!(name, ".git" | "__pycache__")
        || name.ends_with(".swp")
        || (at_root && (matches!(name, "target" | ".tools" | "digits") || name.starts_with("tfos-model")))
}

impl Tree {
    pub(crate) fn of(files: Vec<File>) -> Self {
        Self { files }
    }

    /// The repository that this test was compiled in.
    pub(crate) fn read() -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = tests.parent().unwrap_or(tests);
        let mut files = vec![];
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            // A folder may go away while it is read: others build and run jobs here.
            for entry in fs::read_dir(root.join(&folder)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = folder.join(&name);
                if is_ignored(&name, folder.as_os_str().is_empty()) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if let Ok(text) = fs::read_to_string(entry.path()) {
                    let executable = is_executable(&entry.path());
                    files.push(File { path: path.to_string_lossy().replace('\\', "/"), text, executable });
                }
            }
        }
        assert!(files.iter().any(|f| f.path == "Cargo.toml"), "{} is not the repository", root.display());
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// Whether a file or a folder of that name exists.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        path.is_empty()
            || self.files.iter().any(|f| f.path.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/')))
    }

    pub(crate) fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.iter().filter(move |f| f.path.rsplit_once('.').is_some_and(|(_, e)| e == extension))
    }

    pub(crate) fn manifests(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.path.rsplit('/').next() == Some("Cargo.toml"))
    }
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(_: &Path) -> bool {
    true
}

/// The line without a `//` comment at its end. A `//` inside a string or an address (`s3://`) stays code.
pub(crate) fn code_of(line: &str) -> &str {
    let is_comment = |at: &usize| {
        let before = &line[..*at];
        !before.ends_with(':') && before.matches('"').count().is_multiple_of(2)
    };
    let at = line.match_indices("//").map(|(at, _)| at).find(is_comment);
    at.map_or(line, |at| &line[..at])
}

/// Whether `word` stands in `text` with no letter, digit or `_` directly before it.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word)
        .any(|(at, _)| !text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_'))
}
