//! The dial of a job as the parameter servers see it.

use tfos_core::config::{Consistency, Group as Named};
use tfos_ps::{Dial, Group, Mode};

/// Groups that are all alike are the whole model; without a synchronous one among them the strictest bound holds for all.
pub(crate) fn dial(consistency: &Consistency) -> Dial {
    match consistency {
        Consistency::Groups { groups } => of_groups(groups),
        Consistency::Async => Mode::Async.into(),
        Consistency::Sync { replicas_to_aggregate } => {
            Mode::Sync { replicas_to_aggregate: *replicas_to_aggregate }.into()
        }
        Consistency::Bounded { max_staleness } => Mode::Bounded { max_staleness: *max_staleness }.into(),
        Consistency::LocalSgd { steps } => Mode::LocalSgd { steps: steps.get() }.into(),
        Consistency::Deterministic { .. } => Mode::Deterministic.into(),
    }
}

fn of_groups(groups: &[Named]) -> Dial {
    let replicas = groups.iter().find_map(|group| match group.setting {
        Consistency::Sync { replicas_to_aggregate } => Some(replicas_to_aggregate),
        _ => None,
    });
    let bound = groups.iter().filter_map(|group| match group.setting {
        Consistency::Bounded { max_staleness } => Some(max_staleness),
        _ => None,
    });
    let groups: Vec<Group> = groups
        .iter()
        .map(|group| {
            let eager = !matches!(group.setting, Consistency::Sync { .. });
            Group { pattern: group.pattern.clone(), eager }
        })
        .collect();
    match (replicas, bound.min()) {
        (Some(replicas_to_aggregate), _) if groups.iter().any(|group| group.eager) => {
            Dial { mode: Mode::Grouped { replicas_to_aggregate }, groups }
        }
        (Some(replicas_to_aggregate), _) => Mode::Sync { replicas_to_aggregate }.into(),
        (None, Some(max_staleness)) => Mode::Bounded { max_staleness }.into(),
        (None, None) => Mode::Async.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_apart_only_where_they_differ() {
        let of = |text: &str| dial(&Consistency::parse(text, 3, 1).unwrap());
        assert_eq!(of("a=ssp:4,b=async,*=ssp:2").mode, Mode::Bounded { max_staleness: 2 });
        assert_eq!(of("a=async,async"), Mode::Async.into());
        assert_eq!(of("a=sync:2,sync:2"), Mode::Sync { replicas_to_aggregate: 2 }.into());
        let mixed = of("e*=async,d=sync,*=ssp:1");
        assert_eq!(mixed.mode, Mode::Grouped { replicas_to_aggregate: 3 });
        let groups: Vec<_> = mixed.groups.iter().map(|g| (g.pattern.as_str(), g.eager)).collect();
        assert_eq!(groups, [("e*", true), ("d", false), ("*", true)]);
    }
}
