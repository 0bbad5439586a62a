//! Facts in, decision out: which checkpoint to restore, whether one is due.

use std::time::Duration;

use crate::ids::GlobalStep;

/// What was found out about one checkpoint folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its step.
    pub step: GlobalStep,
    /// `None` when it can be used; otherwise what is wrong, naming the file. A folder without a
    /// manifest is no checkpoint (`CKP-1`) and does not become a candidate.
    pub damage: Option<String>,
}

/// Which checkpoint a job starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Newest one that can be used; `None` starts from step 0.
    pub restore: Option<GlobalStep>,
    /// Those that cannot, newest first: they are reported by name, and leave the lineage (`CKP-2`).
    pub skipped: Vec<Candidate>,
}

/// Newest usable candidate, and what had to be passed over.
pub fn compute_target(mut candidates: Vec<Candidate>) -> Target {
    candidates.sort_by_key(|c| std::cmp::Reverse(c.step));
    let restore = candidates.iter().find(|c| c.damage.is_none()).map(|c| c.step);
    candidates.retain(|c| c.damage.is_some());
    Target { restore, skipped: candidates }
}

/// A checkpoint is due when the job asked for one every so many steps or every so often, and something
/// was learned since the last one.
pub fn is_due(
    step: GlobalStep,
    last: GlobalStep,
    since_last: Duration,
    every_steps: Option<u64>,
    every: Option<Duration>,
) -> bool {
    step > last && (every_steps.is_some_and(|n| step.0 - last.0 >= n.max(1)) || every.is_some_and(|t| since_last >= t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(step: u64, damage: Option<&str>) -> Candidate {
        Candidate { step: GlobalStep(step), damage: damage.map(str::to_owned) }
    }

    #[test] // CKP-2
    fn the_newest_usable_one_is_restored_and_newer_damaged_ones_are_named() {
        let target = compute_target(vec![candidate(10, None), candidate(30, Some("part 0: crc")), candidate(20, None)]);
        assert_eq!(target.restore, Some(GlobalStep(20)));
        assert_eq!(target.skipped, [candidate(30, Some("part 0: crc"))]);
        assert_eq!(compute_target(vec![]).restore, None);
        let all_bad = compute_target(vec![candidate(1, Some("x")), candidate(2, Some("y"))]);
        assert_eq!((all_bad.restore, all_bad.skipped.len()), (None, 2));
    }

    #[test]
    fn due_by_steps_or_by_time_but_never_without_progress() {
        let (s, sec) = (GlobalStep, Duration::from_secs);
        assert!(is_due(s(10), s(0), sec(0), Some(10), None));
        assert!(!is_due(s(9), s(0), sec(99), Some(10), None));
        assert!(is_due(s(1), s(0), sec(600), None, Some(sec(600))));
        assert!(!is_due(s(5), s(5), sec(6000), Some(1), Some(sec(600))));
    }
}
