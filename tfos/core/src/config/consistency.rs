//! When gradients become updates: the dial, as written in one word and as checked.
//!
//! ```text
//!  sync            every training node's gradient makes the update      sync:R     the first R of them
//!  ssp:S           each by itself, nobody more than S steps ahead       async      each by itself
//!  local-sgd:H     each node takes H steps on its own copy, then the copies are averaged
//!  embed.*=async,out.*=ssp:2,sync                          by names of variables; the first that matches, the rest last
//! ```
//!
//! `--sync-replicas`, `--replicas-to-aggregate` and `--max-staleness` are older spellings of the same.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::raw::RawJob;

/// When a gradient becomes an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Consistency {
    /// Each by itself, as it comes.
    Async,
    /// The first `replicas_to_aggregate` gradients of a step make one update.
    Sync {
        /// Gradients per update.
        replicas_to_aggregate: u32,
    },
    /// As `Async`, with no training node further than this ahead of the slowest.
    Bounded {
        /// In steps of its own.
        max_staleness: u32,
    },
    /// Each training node applies its own updates; after so many of them the nodes' states are averaged, which is one
    /// global step.
    #[serde(rename = "local-sgd")]
    LocalSgd {
        /// Updates of a node between two averages.
        steps: NonZeroU32,
    },
    /// Variables by their names, each group in its own way.
    Groups {
        /// The first one that matches a variable has it; the last one matches all.
        groups: Vec<Group>,
    },
    /// Each update is made of this many batches, added in one order, whoever computed them.
    Deterministic {
        /// Batches of an update; fewer only at the end of an epoch.
        micro_batches: NonZeroU32,
    },
}

/// Variables that are updated in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Their names, with `*` for any characters.
    pub pattern: String,
    /// `Sync`, `Bounded` or `Async`.
    pub setting: Consistency,
}

/// Batches of an update in deterministic training, unless the user says otherwise: as many nodes can train at once.
const DEFAULT_MICRO_BATCHES: NonZeroU32 = NonZeroU32::new(8).unwrap();

/// In the words of `--consistency`; deterministic training has an option of its own.
impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Async => f.write_str("async"),
            Self::Sync { replicas_to_aggregate } => write!(f, "sync:{replicas_to_aggregate}"),
            Self::Bounded { max_staleness } => write!(f, "ssp:{max_staleness}"),
            Self::LocalSgd { steps } => write!(f, "local-sgd:{steps}"),
            Self::Groups { groups } => {
                let texts = groups.iter().map(|group| format!("{}={}", group.pattern, group.setting));
                f.write_str(&texts.collect::<Vec<_>>().join(","))
            }
            Self::Deterministic { micro_batches } => write!(f, "deterministic, {micro_batches} micro-batches"),
        }
    }
}

impl Consistency {
    /// Reads the dial for a job with so many training nodes and ps; else every problem, in words.
    pub fn parse(text: &str, trainers: u32, num_ps: u32) -> Result<Self, Vec<String>> {
        if text.contains([',', '=']) {
            return groups(text, trainers, num_ps);
        }
        let found = setting(text.trim(), trainers).map_err(|problem| vec![problem])?;
        match found {
            Self::LocalSgd { .. } if num_ps == 0 => {
                Err(vec!["local-sgd averages on the parameter servers; give --num-ps".into()])
            }
            found => Ok(found),
        }
    }

    /// The checked setting of a job; `Async` where there is a problem.
    pub(super) fn check(raw: &RawJob, trainers: u32, num_ps: u32, bad: &mut impl FnMut(&str, String)) -> Self {
        let older = older_spelling(raw, trainers, bad);
        let deterministic = deterministic(raw, trainers, bad);
        let Some(text) = &raw.consistency else { return deterministic.unwrap_or(older) };
        let also = [
            ("sync-replicas", raw.sync_replicas.unwrap_or(false)),
            ("replicas-to-aggregate", raw.replicas_to_aggregate.is_some()),
            ("max-staleness", raw.max_staleness.is_some()),
            ("deterministic", raw.deterministic.unwrap_or(false)),
        ];
        for (key, _) in also.iter().filter(|(_, given)| *given) {
            bad(
                "consistency",
                format!("not together with --{key}, which says the same or contradicts it; leave one out"),
            );
        }
        match Self::parse(text, trainers, num_ps) {
            Ok(Self::LocalSgd { .. }) if raw.num_gpus.unwrap_or(0) > 0 => {
                bad("consistency", "local-sgd keeps the optimizer on the CPU; leave --num-gpus out".into());
            }
            Ok(found) => return found,
            Err(problems) => problems.into_iter().for_each(|problem| bad("consistency", problem)),
        }
        Self::Async
    }
}

/// Settings by name; every problem.
fn groups(text: &str, trainers: u32, num_ps: u32) -> Result<Consistency, Vec<String>> {
    let mut problems = vec![];
    let mut groups: Vec<Group> = vec![];
    for item in text.split(',').map(str::trim) {
        let (pattern, word) = item.split_once('=').unwrap_or(("*", item));
        if groups.last().is_some_and(|group| group.pattern == "*") {
            problems.push(format!("`{item}` comes after the rest, so it has no variable: the rest is the last"));
        }
        if pattern.trim().is_empty() {
            problems.push(format!("`{item}` has no name before the `=`"));
        }
        match setting(word.trim(), trainers) {
            Ok(Consistency::LocalSgd { .. }) => problems.push(format!(
                "`{item}`: local-sgd is for the whole model, as nodes take whole steps by themselves; give it alone"
            )),
            Ok(setting) => groups.push(Group { pattern: pattern.trim().to_owned(), setting }),
            Err(problem) => problems.push(problem),
        }
    }
    let mut replicas = groups.iter().filter_map(|group| match group.setting {
        Consistency::Sync { replicas_to_aggregate } => Some(replicas_to_aggregate),
        _ => None,
    });
    if let Some(first) = replicas.next()
        && let Some(other) = replicas.find(|other| *other != first)
    {
        problems.push(format!(
            "sync:{first} and sync:{other}: a gradient is taken in all groups or in none, so give all of them one number"
        ));
    }
    if problems.is_empty() && groups.last().is_none_or(|group| group.pattern != "*") {
        problems.push("no group has the rest: end with a setting without a name".into());
    }
    if num_ps == 0 {
        problems.push("groups are updated on the parameter servers; give --num-ps".into());
    }
    if problems.is_empty() { Ok(Consistency::Groups { groups }) } else { Err(problems) }
}

/// One setting of the dial.
fn setting(text: &str, trainers: u32) -> Result<Consistency, String> {
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (name, Some(number)),
        None => (text, None),
    };
    let count = |what: &str| -> Result<u32, String> {
        let number = number.ok_or_else(|| format!("`{text}` lacks {what}: write {name}:N"))?;
        number.parse().map_err(|_| format!("`{number}` in `{text}` is no number of {what}"))
    };
    match (name, number) {
        ("async", None) => Ok(Consistency::Async),
        ("sync", None) => Ok(Consistency::Sync { replicas_to_aggregate: trainers }),
        ("sync", Some(_)) => {
            let r = count("gradients")?;
            if r == 0 || r > trainers {
                return Err(format!("`{text}`: {r} of {trainers} training nodes; give 1 to {trainers}"));
            }
            Ok(Consistency::Sync { replicas_to_aggregate: r })
        }
        ("ssp", _) => Ok(Consistency::Bounded { max_staleness: count("steps")? }),
        ("local-sgd", _) => match NonZeroU32::new(count("steps")?) {
            Some(steps) => Ok(Consistency::LocalSgd { steps }),
            None => Err(format!("`{text}`: give 1 step or more between two averages")),
        },
        _ => Err(format!("`{text}` is none of sync, sync:R, ssp:S, async, local-sgd:H")),
    }
}

/// What the options say that are older than the dial.
fn older_spelling(raw: &RawJob, trainers: u32, bad: &mut impl FnMut(&str, String)) -> Consistency {
    let sync = raw.sync_replicas.unwrap_or(false);
    if sync && raw.max_staleness.is_some() {
        bad("max-staleness", "not together with --sync-replicas: synchronous gradients are never stale".into());
    }
    match (sync, raw.replicas_to_aggregate) {
        (false, Some(_)) => {
            bad("replicas-to-aggregate", "only together with --sync-replicas".into());
            Consistency::Async
        }
        (false, None) => match raw.max_staleness {
            Some(max_staleness) => Consistency::Bounded { max_staleness },
            None => Consistency::Async,
        },
        (true, r) => {
            let r = r.unwrap_or(trainers);
            if r == 0 || r > trainers {
                bad("replicas-to-aggregate", format!("{r} of {trainers} training nodes; give 1 to {trainers}"));
            }
            Consistency::Sync { replicas_to_aggregate: r }
        }
    }
}

/// Deterministic training, if it was asked for: other ways of making updates contradict it.
fn deterministic(raw: &RawJob, trainers: u32, bad: &mut impl FnMut(&str, String)) -> Option<Consistency> {
    let micro_batches = raw.micro_batches.map_or(Some(DEFAULT_MICRO_BATCHES), NonZeroU32::new);
    if micro_batches.is_none() {
        bad("micro-batches", "must be at least 1".into());
    }
    if !raw.deterministic.unwrap_or(false) {
        if raw.micro_batches.is_some() {
            bad("micro-batches", "only together with --deterministic".into());
        }
        return None;
    }
    if raw.max_staleness.is_some() {
        bad("max-staleness", "not together with --deterministic, whose updates are synchronous".into());
    }
    if raw.replicas_to_aggregate.is_some_and(|r| r != trainers) {
        bad("replicas-to-aggregate", "not together with --deterministic: no gradient of it is left out".into());
    }
    if raw.num_gpus.unwrap_or(0) > 0 {
        bad("num-gpus", "not together with --deterministic, which promises equal bits on CPUs only".into());
    }
    Some(Consistency::Deterministic { micro_batches: micro_batches? })
}

#[cfg(test)]
#[path = "consistency_tests.rs"]
mod tests;
