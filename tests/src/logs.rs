//! The ends of the nodes' logs, for failed tests.

use std::fmt::Write;
use std::path::{Path, PathBuf};

const LINES: usize = 20;

/// Every log below a folder, in order of their names: those of later generations come last.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "log") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// All text of the logs below a folder.
pub fn text(folder: &Path) -> String {
    files(folder).iter().filter_map(|f| std::fs::read_to_string(f).ok()).collect()
}

/// The last lines of each log below a folder.
pub fn tails(folder: &Path) -> String {
    let mut out = String::new();
    for file in files(folder) {
        let text = std::fs::read(&file).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let _ = writeln!(out, "--- {}", file.display());
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            let _ = writeln!(out, "    {line}");
        }
    }
    out
}
