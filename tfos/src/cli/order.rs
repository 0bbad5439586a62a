//! `tfos checkpoints MODEL_DIR list` beside `tfos checkpoints list MODEL_DIR`: the one is made the other before clap reads it.

use std::ffi::OsString;

use clap::CommandFactory;

use super::flags::Cli;

/// The words of the command line, a model directory in front of a command of `checkpoints` put behind it. Where both could
/// be commands the first one is: a folder with the name of a command stands behind it, or is written `./list`.
pub(super) fn either(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    if words.get(1).is_none_or(|word| word != "checkpoints") {
        return words;
    }
    let cli = Cli::command();
    let Some(checkpoints) = cli.find_subcommand("checkpoints") else { return words };
    let is_command = |word: &OsString| word == "help" || checkpoints.get_subcommands().any(|c| word == c.get_name());
    // Values of `--output TEXT` are no words of their own.
    let is_word = |at: usize| {
        let word = words.get(at).map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
        !word.starts_with('-') && words.get(at - 1).is_none_or(|before| before != "--output")
    };
    let mut plain = (2..words.len()).filter(|at| is_word(*at));
    if let (Some(first), Some(second)) = (plain.next(), plain.next())
        && !words.get(first).is_some_and(is_command)
        && words.get(second).is_some_and(is_command)
    {
        words.swap(first, second);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(line: &str) -> String {
        let words = either(line.split_whitespace().map(OsString::from));
        words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_model_directory_may_stand_before_the_command() {
        assert_eq!(ordered("tfos checkpoints dir list"), "tfos checkpoints list dir");
        assert_eq!(ordered("tfos checkpoints dir diff 3 7"), "tfos checkpoints diff dir 3 7");
        assert_eq!(ordered("tfos checkpoints s3://b/m copy 3 to"), "tfos checkpoints copy s3://b/m 3 to");
        let with_options = ordered("tfos checkpoints --output json dir --output json gc --dry-run");
        assert_eq!(with_options, "tfos checkpoints --output json gc --output json dir --dry-run");
        for same in [
            "tfos checkpoints list dir",
            "tfos checkpoints list list",
            "tfos checkpoints show show 3",
            "tfos checkpoints dir",
            "tfos checkpoints --help",
            "tfos checkpoints dir frobnicate",
            "tfos sql dir list",
            "tfos",
        ] {
            assert_eq!(ordered(same), same);
        }
    }
}
