//! How pushes become updates, for the whole model or for groups of its variables, and its change while training goes on.
//!
//! A push is one unit with a part for each group. The *eager* groups (async, ssp) have theirs applied as soon as the push is
//! accepted: it is on every shard, was computed at the current step, and is among the first R, so that nothing can drop it any
//! more. The rest, which is synchronous, gets its update when R are accepted; with that the rows of all of them are
//! committed, and the global step goes on. A push that is not accepted is dropped in all groups.
//!
//! So there is one number R for all synchronous groups, and without a synchronous group there is nothing to wait for: each
//! push is applied whole. A gradient that is accepted has seen every earlier step, so no bound of staleness is exceeded in
//! an eager group; without a synchronous one the strictest bound holds.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::optimizer::Scheduled;
use crate::sequencer::Mode;

/// Variables that are updated at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Their names, with `*` for any characters. The first group that matches a variable has it.
    pub pattern: String,
    /// Whether its part of a push is applied as soon as the push is accepted.
    pub eager: bool,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub mode: Mode,
    /// With [`Mode::Grouped`] only.
    pub groups: Vec<Group>,
}

impl From<Mode> for Dial {
    fn from(mode: Mode) -> Dial {
        Dial { mode, groups: Vec::new() }
    }
}

impl Dial {
    /// Whether this model can be trained so; an error in words.
    pub fn check(&self, layout: &Layout, optimizer: &Scheduled) -> Result<(), String> {
        self.check_names(layout.variables.iter().map(|variable| variable.name.as_str()), optimizer)
    }

    pub(crate) fn check_names<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        optimizer: &Scheduled,
    ) -> Result<(), String> {
        if self.groups.is_empty() {
            return Ok(());
        }
        if !optimizer.rounds().is_empty() {
            return Err(
                "groups are updated one after the other, so there is no gradient of all variables whose norm could \
                        be measured: leave out the clipping, or LAMB, or the groups"
                    .to_owned(),
            );
        }
        let names: Vec<&str> = names.collect();
        if let Some(stray) = names.iter().find(|name| self.groups.iter().all(|group| !matches(&group.pattern, name))) {
            return Err(format!(
                "no group has the variable `{stray}`; the last one is to have the rest, without a pattern"
            ));
        }
        match self.groups.iter().find(|group| !names.iter().any(|name| matches(&group.pattern, name))) {
            Some(group) => Err(format!("`{}` matches none of the variables {}", group.pattern, names.join(", "))),
            None => Ok(()),
        }
    }
}

/// Whether a variable is in an eager group.
pub(crate) fn is_eager(groups: &[Group], name: &str) -> bool {
    groups.iter().find(|group| matches(&group.pattern, name)).is_some_and(|group| group.eager)
}

/// Adjoining ranges that are updated together, in order, and whether eagerly.
pub(crate) fn pieces(groups: &[Group], variables: &[(String, Range<usize>)]) -> Vec<(Range<usize>, bool)> {
    let mut pieces: Vec<(Range<usize>, bool)> = Vec::new();
    for (name, range) in variables.iter().filter(|(_, range)| !range.is_empty()) {
        let eager = is_eager(groups, name);
        match pieces.last_mut() {
            Some((last, same)) if *same == eager && last.end == range.start => last.end = range.end,
            _ => pieces.push((range.clone(), eager)),
        }
    }
    pieces
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(tail) = name.strip_prefix(head) else { return false };
    (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, &tail[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Optimizer;

    fn group(pattern: &str, eager: bool) -> Group {
        Group { pattern: pattern.to_owned(), eager }
    }

    #[test]
    fn the_first_group_that_matches_has_the_variable() {
        for (pattern, name, wanted) in [
            ("embed.*", "embed.weight", true),
            ("embed.*", "embed", false),
            ("*", "", true),
            ("*.bias", "a.b.bias", true),
            ("a*b*c", "abxbc", true),
            ("a*b*c", "acb", false),
            ("w", "w2", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
        let groups = [group("embed.*", true), group("*.bias", false), group("*", true)];
        let range = |name: &str, range| (name.to_owned(), range);
        let variables =
            [range("a.bias", 0..3), range("a.weight", 3..9), range("embed.bias", 9..12), range("z.bias", 12..12)];
        assert_eq!(pieces(&groups, &variables), [(0..3, false), (3..12, true)]);
    }

    #[test]
    fn what_cannot_be_trained_in_groups_is_told() {
        let layout = Layout::new(["a", "b"].map(|name| (name.to_owned(), vec![2])), []).unwrap();
        let dial =
            |groups: &[Group]| Dial { mode: Mode::Grouped { replicas_to_aggregate: 2 }, groups: groups.to_vec() };
        let sgd = Scheduled::from(Optimizer::sgd(0.1));
        assert_eq!(dial(&[group("a", true), group("*", false)]).check(&layout, &sgd), Ok(()));
        for (groups, optimizer, word) in [
            (vec![group("a", true)], sgd, "`b`"),
            (vec![group("c*", true), group("*", false)], sgd, "matches none of the variables a, b"),
            (vec![group("a", true), group("*", false)], Optimizer::sgd(0.1).with_clip_norm(1.0), "clipping"),
        ] {
            let told = dial(&groups).check(&layout, &optimizer).unwrap_err();
            assert!(told.contains(word), "{told}");
        }
    }
}
