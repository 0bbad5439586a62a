//! Facts in, decision out: which files of a model directory belong to no checkpoint, and to none in progress.

use std::collections::BTreeSet;

use super::{Paths, Starts};
use crate::ids::{Generation, GlobalStep};

/// A manifest that was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Found {
    /// Step of its folder.
    pub step: GlobalStep,
    /// Its writer and the files that it names; `None` when it cannot be read.
    pub content: Option<(Generation, Vec<String>)>,
}

/// The files to delete, in order, out of `files` (relative to the model directory). The files have to be listed first, then
/// the starts read, then the manifests: what was created before a start is then seen, and what comes after it is void.
/// Only files with names that this program gives are deleted.
///
/// A generation older than the newest start cannot commit any more. The newest one never goes back behind its newest
/// manifest. Everything else without a manifest may be a checkpoint in progress, and stays. Of a manifest that
/// cannot be read nobody knows what it names, so with one all of its folder and all of the ledger stays.
pub fn compute_garbage(files: &[String], manifests: &[Found], starts: &Starts, claimed: Generation) -> Vec<String> {
    let current = starts.newest().unwrap_or(claimed);
    let newest =
        manifests.iter().filter(|m| m.content.as_ref().is_some_and(|(g, _)| *g == current)).map(|m| m.step).max();
    let behind = |step: GlobalStep| newest.is_some_and(|newest| step < newest);
    let abandoned = |(step, generation)| generation < current || (generation == current && behind(step));
    // A void manifest goes only where nobody will write another one.
    let void = |m: &&Found| m.content.as_ref().is_some_and(|(g, _)| starts.is_void(m.step, *g)) && behind(m.step);
    let mut garbage: Vec<String> = manifests.iter().filter(void).map(|m| Paths::manifest(m.step)).collect();
    let kept = || manifests.iter().filter(|m| !void(m));
    let unreadable: BTreeSet<GlobalStep> = kept().filter(|m| m.content.is_none()).map(|m| m.step).collect();
    let named: BTreeSet<&String> = kept().filter_map(|m| m.content.as_ref()).flat_map(|(_, names)| names).collect();
    let is_garbage = |file: &&String| {
        let target = Paths::staged_for(file).unwrap_or(file);
        if let Some(part) = Paths::parse_part(target).or_else(|| Paths::parse_damaged(target)) {
            return abandoned(part) && !unreadable.contains(&part.0);
        }
        if let Some(segment) = Paths::parse_segment(target) {
            return abandoned(segment) && unreadable.is_empty();
        }
        if let Some(generation) = Paths::generation_of(target) {
            // Half a file of the job's folder; whole ones stay.
            return target != *file && generation < current;
        }
        Paths::step_of(target).is_some_and(|step| {
            let of_none = target == Paths::scores(step) && kept().all(|m| m.step != step);
            behind(step) && (of_none || target != *file)
        })
    };
    garbage.extend(files.iter().filter(is_garbage).filter(|file| !named.contains(file)).cloned());
    garbage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Base, Start};

    const NEWEST: Generation = Generation(2);

    fn part(step: u64, generation: u64) -> String {
        Paths::part(GlobalStep(step), Generation(generation), 0, 1)
    }

    fn segment(after: u64, upto: u64, generation: u64) -> String {
        Paths::ledger_segment(Generation(generation), GlobalStep(after), GlobalStep(upto))
    }

    fn found(step: u64, generation: u64, names: Vec<String>) -> Found {
        Found { step: GlobalStep(step), content: Some((Generation(generation), names)) }
    }

    fn starts() -> Starts {
        let base = Base { step: GlobalStep(20), generation: Generation(1) };
        Starts([(NEWEST, Start { restored: Some(base) })].into())
    }

    #[test] // CKP-1
    fn what_no_manifest_names_goes_but_for_the_checkpoint_in_progress() {
        let named = [part(20, 1), segment(0, 20, 1), part(40, 2), segment(20, 40, 2)];
        let stray = [part(30, 1), segment(20, 30, 1), part(20, 2), segment(20, 20, 2), part(99, 1)];
        let in_progress = [part(40, 2).replace("00000-of", "00001-of"), part(50, 2), segment(40, 50, 2), part(10, 3)];
        let foreign = ["ledger/notes.txt".to_owned(), "checkpoints/000000000030/readme".to_owned()];
        let files: Vec<String> = [&named[..], &stray, &in_progress, &foreign].concat();
        let manifests = [found(20, 1, named[..2].to_vec()), found(40, 2, [&named[..2], &named[2..]].concat())];
        assert_eq!(compute_garbage(&files, &manifests, &starts(), NEWEST), stray);
        // Before the newest generation has a manifest, all of its files may be of its first.
        let garbage = compute_garbage(&files, &manifests[..1], &starts(), NEWEST);
        assert_eq!(garbage, [&stray[..2], &stray[4..]].concat());
    }

    #[test] // CKP-4
    fn a_void_manifest_goes_before_its_parts_and_only_where_no_other_can_come() {
        let files = [part(30, 1), part(20, 1), part(40, 2)];
        let old = [found(20, 1, vec![part(20, 1)]), found(30, 1, vec![part(30, 1)])];
        assert_eq!(compute_garbage(&files, &old, &starts(), NEWEST), [""; 0]);
        let now = [&old[..], &[found(40, 2, vec![part(40, 2)])]].concat();
        assert_eq!(compute_garbage(&files, &now, &starts(), NEWEST), [Paths::manifest(GlobalStep(30)), part(30, 1)]);
    }

    #[test]
    fn the_scores_of_a_checkpoint_that_is_gone_go() {
        let files = [20, 30, 50].map(|step| Paths::scores(GlobalStep(step)));
        let manifests = [found(20, 1, vec![]), found(40, 2, vec![])];
        assert_eq!(compute_garbage(&files, &manifests, &starts(), NEWEST), files[1..2]);
    }

    #[test]
    fn half_a_file_of_an_old_job_goes_and_whole_ones_stay() {
        let files =
            [1, 2].map(|g| Paths::events(Generation(g))).map(|name| [name.clone(), format!("{name}#1")]).concat();
        let stray = files[1..2].to_vec();
        let files = [&files[..], &["job/input-0a1b2c3d.bin".to_owned(), "job/notes#1".to_owned()]].concat();
        assert_eq!(compute_garbage(&files, &[], &starts(), NEWEST), stray);
    }

    #[test]
    fn with_a_manifest_that_cannot_be_read_what_it_may_name_stays() {
        let files = [part(20, 1), part(30, 1), segment(0, 20, 1)];
        let manifests = [Found { step: GlobalStep(20), content: None }];
        assert_eq!(compute_garbage(&files, &manifests, &starts(), NEWEST), [part(30, 1)]);
    }
}
