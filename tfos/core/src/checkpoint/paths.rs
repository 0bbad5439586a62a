//! The only place that knows how a model directory is laid out.

use crate::ids::{Generation, GlobalStep};

/// Paths inside a model directory, relative to it, with `/` between segments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paths;

impl Paths {
    /// Folder of all checkpoints.
    pub const CHECKPOINTS: &'static str = "checkpoints";
    /// Folder of the commit log.
    pub const LEDGER: &'static str = "ledger";
    /// Folder of files that belong to the model beside its values.
    pub const ASSETS: &'static str = "assets";
    /// Folder of the newest export, unless another one was named.
    pub const EXPORT: &'static str = "export";
    /// Folder of the driver's own files.
    pub const JOB: &'static str = "job";
    /// File written and removed before training starts, to know that checkpoints can be written.
    pub const PROBE: &'static str = "job/write-probe";

    /// Folder of one checkpoint. Twelve digits, so that a listing is in order of steps.
    pub fn checkpoint(step: GlobalStep) -> String {
        format!("{}/{:012}", Self::CHECKPOINTS, step.0)
    }

    /// Manifest of one checkpoint.
    pub fn manifest(step: GlobalStep) -> String {
        format!("{}/manifest.json", Self::checkpoint(step))
    }

    /// What an evaluator made of one checkpoint.
    pub fn scores(step: GlobalStep) -> String {
        format!("{}/scores.json", Self::checkpoint(step))
    }

    /// Where a manifest goes whose checkpoint was found damaged.
    pub fn damaged_manifest(step: GlobalStep, generation: Generation) -> String {
        format!("{}/manifest.damaged-g{generation}.json", Self::checkpoint(step))
    }

    /// One part, named after the generation that wrote it: two incarnations that reach the same step
    /// never write into the same file.
    pub fn part(step: GlobalStep, generation: Generation, shard: u32, shards: u32) -> String {
        format!("{}/part-{shard:05}-of-{shards:05}.g{generation}.safetensors", Self::checkpoint(step))
    }

    /// One segment of the commit log: the steps after `after` up to `upto`.
    pub fn ledger_segment(generation: Generation, after: GlobalStep, upto: GlobalStep) -> String {
        format!("{}/{:012}-{:012}.g{generation}.parquet", Self::LEDGER, after.0 + 1, upto.0)
    }

    /// A file that belongs to the model.
    pub fn asset(name: &str) -> String {
        format!("{}/{name}", Self::ASSETS)
    }

    /// Claim of a generation, created by exactly one driver.
    pub fn generation(generation: Generation) -> String {
        format!("{}/generation-{:06}.json", Self::JOB, generation.0)
    }

    /// Generation of a file name made by [`Self::generation`].
    pub fn parse_generation(name: &str) -> Option<Generation> {
        name.strip_prefix("generation-")?.strip_suffix(".json")?.parse().ok().map(Generation)
    }

    /// What a generation starts from, created before it writes anything else; see [`super::Start`].
    pub fn start(generation: Generation) -> String {
        format!("{}/start-{:06}.json", Self::JOB, generation.0)
    }

    /// Generation of a file name made by [`Self::start`].
    pub fn parse_start(name: &str) -> Option<Generation> {
        name.strip_prefix("start-")?.strip_suffix(".json")?.parse().ok().map(Generation)
    }

    /// Which checkpoint of its own a generation has committed last: a listing may not have it yet.
    pub fn newest(generation: Generation) -> String {
        format!("{}/newest-{:06}.json", Self::JOB, generation.0)
    }

    /// Generation of a file name made by [`Self::newest`].
    pub fn parse_newest(name: &str) -> Option<Generation> {
        name.strip_prefix("newest-")?.strip_suffix(".json")?.parse().ok().map(Generation)
    }

    /// The training input of a fingerprint with this checksum, for `rows_of` of `tfos sql`.
    pub fn input(checksum: u32) -> String {
        format!("{}/input-{checksum:08x}.bin", Self::JOB)
    }

    /// What happened in a generation and what its nodes reported, for `tfos sql`.
    pub fn events(generation: Generation) -> String {
        format!("{}/events-{:06}.parquet", Self::JOB, generation.0)
    }

    /// Generation of a file name made by [`Self::events`].
    pub fn parse_events(name: &str) -> Option<Generation> {
        name.strip_prefix("events-")?.strip_suffix(".parquet")?.parse().ok().map(Generation)
    }

    /// The `number`th request to change a setting while a generation runs, created by exactly one command.
    pub fn set(generation: Generation, number: u64) -> String {
        format!("{}/set-{:06}-{number}.json", Self::JOB, generation.0)
    }

    /// What became of the request.
    pub fn set_answer(generation: Generation, number: u64) -> String {
        format!("{}/set-{:06}-{number}-answer.json", Self::JOB, generation.0)
    }

    /// Step of the checkpoint in whose folder a file lies.
    pub fn step_of(path: &str) -> Option<GlobalStep> {
        let (step, _file) = path.strip_prefix(Self::CHECKPOINTS)?.strip_prefix('/')?.split_once('/')?;
        Self::parse_step(step)
    }

    /// Step and generation of a path made by [`Self::part`].
    pub fn parse_part(path: &str) -> Option<(GlobalStep, Generation)> {
        let (_, generation) =
            path.rsplit_once('/')?.1.strip_prefix("part-")?.strip_suffix(".safetensors")?.rsplit_once(".g")?;
        Some((Self::step_of(path)?, Generation(generation.parse().ok()?)))
    }

    /// Last step and generation of a path made by [`Self::ledger_segment`].
    pub fn parse_segment(path: &str) -> Option<(GlobalStep, Generation)> {
        let name = path.strip_prefix(Self::LEDGER)?.strip_prefix('/')?.strip_suffix(".parquet")?;
        let (steps, generation) = name.rsplit_once(".g")?;
        let (_, upto) = steps.split_once('-')?;
        Some((GlobalStep(upto.parse().ok()?), Generation(generation.parse().ok()?)))
    }

    /// Step and generation of a path made by [`Self::damaged_manifest`].
    pub fn parse_damaged(path: &str) -> Option<(GlobalStep, Generation)> {
        let name = path.rsplit_once('/')?.1.strip_prefix("manifest.damaged-g")?;
        Some((Self::step_of(path)?, Generation(name.strip_suffix(".json")?.parse().ok()?)))
    }

    /// The file that will be there once this one is whole: object stores on file systems write `NAME#1` first.
    pub fn staged_for(path: &str) -> Option<&str> {
        let (target, number) = path.rsplit_once('#')?;
        (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(target)
    }

    /// Step of a folder name made by [`Self::checkpoint`].
    pub fn parse_step(name: &str) -> Option<GlobalStep> {
        (name.len() == 12).then(|| name.parse().ok().map(GlobalStep)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_sort_by_step() {
        let name = Paths::checkpoint(GlobalStep(42));
        assert_eq!(name, "checkpoints/000000000042");
        assert_eq!(Paths::parse_step(name.rsplit('/').next().unwrap()), Some(GlobalStep(42)));
        assert!(Paths::checkpoint(GlobalStep(9)) < Paths::checkpoint(GlobalStep(10)));
        assert_eq!(Paths::parse_generation("generation-000007.json"), Some(Generation(7)));
        assert_eq!(Paths::parse_step("tmp"), None);
        assert_eq!(Paths::parse_generation("start-000007.json"), None);
        let (step, g) = (GlobalStep(42), Generation(3));
        assert_eq!(Paths::parse_newest(Paths::newest(g).rsplit('/').next().unwrap()), Some(g));
        assert_eq!(Paths::parse_events(Paths::events(g).rsplit('/').next().unwrap()), Some(g));
        assert_eq!(Paths::parse_start(Paths::start(g).rsplit('/').next().unwrap()), Some(g));
        assert_eq!(Paths::parse_part(&Paths::part(step, g, 1, 2)), Some((step, g)));
        assert_eq!(Paths::parse_segment(&Paths::ledger_segment(g, GlobalStep(7), step)), Some((step, g)));
        assert_eq!(Paths::parse_damaged(&Paths::damaged_manifest(step, g)), Some((step, g)));
        assert_eq!((Paths::staged_for("a/b#12"), Paths::staged_for("a/b#c")), (Some("a/b"), None));
        for path in [Paths::manifest(step), "ledger/notes.txt".into(), "checkpoints/readme".into()] {
            let parsed = [Paths::parse_part(&path), Paths::parse_segment(&path), Paths::parse_damaged(&path)];
            assert_eq!(parsed, [None; 3], "{path}");
        }
    }
}
