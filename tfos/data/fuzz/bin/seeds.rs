//! Writes the seed corpus: `fuzz-seeds DIR` makes a folder of files for each target.

use std::path::PathBuf;
use std::process::ExitCode;

use tfos_fuzz::seeds;
use tfos_fuzz::targets::TARGETS;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: fuzz-seeds DIR");
        return ExitCode::from(2);
    };
    let write = |(target, _): &(&str, _)| -> std::io::Result<()> {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        let seeds = seeds::of(target).into_iter().enumerate();
        seeds.into_iter().try_for_each(|(number, seed)| std::fs::write(folder.join(format!("seed-{number}")), seed))
    };
    match TARGETS.iter().try_for_each(write) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}: {e}", folder.display());
            ExitCode::FAILURE
        }
    }
}
