//! Data sets of the tests: digits in every format, and small tables, all made by `tfos data convert`.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::{Submit, bin};

/// Handwritten digits as files.
#[derive(Debug)]
pub struct Digits {
    /// False: drawn ones, because the real ones are not here.
    pub real: bool,
    /// 8,000 rows in 4 files.
    pub train_parquet: PathBuf,
    /// 2,000 rows.
    pub test_parquet: PathBuf,
    /// 8,000 rows in 4 files.
    pub train_tfrecord: PathBuf,
    /// 2,000 rows.
    pub test_tfrecord: PathBuf,
}

/// The digits of this run, in `folder`, which is emptied first. Call it in a [`Lab`](crate::Lab): it is not locked.
pub fn digits(folder: &'static str) -> &'static Digits {
    static DIGITS: OnceLock<Digits> = OnceLock::new();
    DIGITS.get_or_init(|| make_digits(&Path::new(folder).join("tfos-digits")))
}

#[expect(clippy::print_stderr, reason = "a check that was not made has to be seen")]
fn make_digits(folder: &Path) -> Digits {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).expect("a folder for the digits");
    let original = bin::repository().join("../shared/data/mnist");
    let real = original.join("train-images-idx3-ubyte.gz").is_file();
    let name = |name: &str| folder.join(name);
    let digits = Digits {
        real,
        train_parquet: name("train-parquet"),
        test_parquet: name("test.parquet"),
        train_tfrecord: name("train-tfrecord"),
        test_tfrecord: name("test.tfrecord"),
    };
    let (train, test) = if real {
        (original.join("train"), original.join("test"))
    } else {
        eprintln!("SKIPPED: the digits are not in {}; drawn ones take their place", original.display());
        draw(&name("drawn-train.parquet"), 1, 8000);
        draw(&name("drawn-test.parquet"), 2, 2000);
        (name("drawn-train.parquet"), name("drawn-test.parquet"))
    };
    convert(&train, &digits.train_parquet, "--num-files 4 --to-format parquet");
    convert(&test, &digits.test_parquet, "");
    convert(&train, &digits.train_tfrecord, "--num-files 4 --to-format tfrecord");
    convert(&test, &digits.test_tfrecord, "");
    digits
}

fn draw(to: &Path, seed: u64, rows: usize) {
    let program = bin::probe().display().to_string();
    Submit::new(&program).args(&format!("mode=draw to={} seed={seed} rows={rows}", to.display())).run().ok();
}

/// `tfos data convert FROM TO FLAGS`; several files go into a folder.
pub fn convert(from: &Path, to: &Path, flags: &str) {
    let folder = if flags.contains("files") { "/" } else { "" };
    let words = format!("data convert {} {}{folder} {flags}", from.display(), to.display());
    Submit::tfos(&words).run().ok();
}

/// A table `x` with the numbers from 0 up to `rows`, in Parquet files of equal size.
pub fn numbers(folder: &Path, rows: u64, files: u64) -> PathBuf {
    table(folder, "numbers", "x", files, (0..rows).map(|i| i.to_string()))
}

/// A table `x, y` with y = 2 x + 1, in Parquet files of equal size.
pub fn line(folder: &Path, rows: u64, files: u64) -> PathBuf {
    let row = |i: u64| {
        let x = (i * 37 % 100) as f64 / 100.0;
        format!("{x:.2},{:.2}", 2.0 * x + 1.0)
    };
    table(folder, "line", "x,y", files, (0..rows).map(row))
}

/// As [`line()`], with noise that no model explains.
pub fn noisy_line(folder: &Path, rows: u64, files: u64) -> PathBuf {
    let row = |i: u64| {
        let (x, noise) = ((i * 37 % 100) as f64 / 100.0, (i * 7919 % 1000) as f64 / 1000.0);
        format!("{x:.2},{:.3}", 2.0 * x + 1.0 + noise)
    };
    table(folder, "noisy", "x,y", files, (0..rows).map(row))
}

fn table(folder: &Path, name: &str, header: &str, files: u64, rows: impl Iterator<Item = String>) -> PathBuf {
    let to = folder.join(name);
    if to.exists() {
        return to;
    }
    let mut text = format!("{header}\n");
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    let csv = folder.join(format!("{name}.csv"));
    std::fs::write(&csv, text).expect("a table can be written");
    convert(&csv, &to, &format!("--num-files {files} --to-format parquet"));
    to
}
