//! Which variable of a checkpoint becomes which of the model, decided from names and shapes alone, so that every node
//! that loads comes to the same.

use std::collections::BTreeMap;

use tfos_core::checkpoint::{Extent, Loading, Missing};
use tfos_ps::{Layout, Variable};

/// A variable of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) kind: Kind,
    /// Index of its first element in its flat vector; 0 in a file that has none.
    pub(super) offset: usize,
}

/// What it was to the model that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Trained,
    Buffer,
    /// Another program wrote it.
    Unknown,
    /// No number that a variable can hold, such as I64.
    Unusable(String),
}

impl Saved {
    pub(super) fn of(variable: &Variable, kind: Kind) -> Self {
        Self { name: variable.name.clone(), shape: variable.shape.clone(), kind, offset: variable.offset }
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).product()
    }
}

/// For each of the model's variables and buffers the one of the checkpoint, by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Matched {
    pub(super) params: Vec<Option<usize>>,
    pub(super) buffers: Vec<Option<usize>>,
    /// What the user has to know, a line each.
    pub(super) notes: Vec<String>,
}

/// Everything that does not match, by what is the matter with it.
#[derive(Debug, Default)]
struct Problems {
    missing: Vec<String>,
    shapes: Vec<String>,
    kinds: Vec<String>,
    extra: Vec<String>,
}

/// Matches, or says in what the checkpoint and the model differ.
pub(super) fn matched(saved: &[Saved], model: &Layout, loading: &Loading) -> Result<Matched, String> {
    let names: Vec<&str> = saved.iter().map(|s| s.name.as_str()).collect();
    let idle = loading.renames.idle(&names).map(|r| format!("--restore-map {r}: the checkpoint has no such variable"));
    let idle: Vec<String> = idle.collect();
    let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
    for (index, one) in saved.iter().enumerate().filter(|(_, s)| !matches!(s.kind, Kind::Unusable(_))) {
        let name = loading.renames.apply(&one.name);
        if let Some(other) = by_name.insert(name.clone(), index).and_then(|i| saved.get(i)) {
            return Err(format!(
                "both `{}` and `{}` of it would be `{name}`; correct --restore-map",
                other.name, one.name
            ));
        }
    }
    let mut problems = Problems::default();
    let mut used = vec![false; saved.len()];
    let mut find = |variable: &Variable, is_trained: bool| {
        let index = by_name.get(&variable.name).copied();
        let Some((index, one)) = index.and_then(|i| Some((i, saved.get(i)?))) else {
            problems.missing.push(described(&variable.name, &variable.shape));
            return None;
        };
        if let Some(used) = used.get_mut(index) {
            *used = true;
        }
        if one.shape != variable.shape {
            problems.shapes.push(format!("{} as {:?} and not {:?}", variable.name, one.shape, variable.shape));
            return None;
        }
        let was_trained = one.kind != Kind::Buffer;
        if loading.extent == Extent::Full && one.kind != Kind::Unknown && is_trained != was_trained {
            let what = |trained| if trained { "trained" } else { "not trained" };
            problems.kinds.push(format!("{} ({} there, {} here)", variable.name, what(was_trained), what(is_trained)));
        }
        Some(index)
    };
    let params: Vec<Option<usize>> = model.variables.iter().map(|v| find(v, true)).collect();
    let buffers: Vec<Option<usize>> = model.buffers.iter().map(|v| find(v, false)).collect();
    for (one, _) in saved.iter().zip(&used).filter(|(_, used)| !**used) {
        problems.extra.push(match &one.kind {
            Kind::Unusable(dtype) => format!("{} of {dtype}", described(&one.name, &one.shape)),
            _ => described(&one.name, &one.shape),
        });
    }
    if loading.missing == Missing::Error && !problems.is_empty() {
        return Err(problems.refusal(loading, &idle));
    }
    let mut notes = idle;
    let found = params.iter().chain(&buffers).flatten().count();
    let asked = *loading != Loading::own(loading.path.clone());
    if asked || !problems.is_empty() {
        let all = params.len() + buffers.len();
        let renamed = params.iter().chain(&buffers).flatten().filter_map(|i| saved.get(*i));
        let renamed = renamed.filter(|s| loading.renames.apply(&s.name) != s.name).count();
        let renamed = if renamed > 0 { format!(", {renamed} under new names") } else { String::new() };
        let fresh = if loading.extent == Extent::Full { "" } else { "; the optimizer's state begins fresh" };
        notes.push(format!("loaded {found} of the model's {all} variables from `{loading}`{renamed}{fresh}"));
    }
    notes.extend(problems.notes());
    Ok(Matched { params, buffers, notes })
}

fn described(name: &str, shape: &[i64]) -> String {
    format!("{name} {shape:?}")
}

impl Problems {
    fn is_empty(&self) -> bool {
        [&self.missing, &self.shapes, &self.kinds, &self.extra].iter().all(|list| list.is_empty())
    }

    fn refusal(&self, loading: &Loading, idle: &[String]) -> String {
        let mut parts: Vec<String> = vec![];
        for (what, list) in [
            ("it lacks", &self.missing),
            ("it has", &self.shapes),
            ("of another kind are", &self.kinds),
            ("only it has", &self.extra),
        ] {
            if !list.is_empty() {
                parts.push(format!("{what} {}", list.join(", ")));
            }
        }
        parts.extend(idle.iter().cloned());
        let elsewhere = if loading.folder.is_some() { "start from another one" } else { "use another --model-dir" };
        parts.push(format!(
            "name what was renamed with --restore-map OLD=NEW, keep the initial values of what differs with \
             --restore-missing init, or {elsewhere}"
        ));
        parts.join("; ")
    }

    fn notes(self) -> impl Iterator<Item = String> {
        let lines = |list: Vec<String>, what: &'static str, then: &'static str| {
            list.into_iter().map(move |one| format!("not loaded: {what} {one}{then}"))
        };
        lines(self.missing, "the checkpoint lacks", ", which keeps its initial value")
            .chain(lines(self.shapes, "the checkpoint has", ", which keeps its initial value"))
            .chain(lines(self.kinds, "the optimizer's state of", ""))
            .chain(lines(self.extra, "only the checkpoint has", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfos_core::checkpoint::Renames;

    fn layout(variables: &[(&str, &[i64])], buffers: &[(&str, &[i64])]) -> Layout {
        let list = |l: &[(&str, &[i64])]| l.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect::<Vec<_>>();
        Layout::new(list(variables), list(buffers)).unwrap()
    }

    fn saved(layout: &Layout) -> Vec<Saved> {
        let variables = layout.variables.iter().map(|v| Saved::of(v, Kind::Trained));
        variables.chain(layout.buffers.iter().map(|v| Saved::of(v, Kind::Buffer))).collect()
    }

    fn loading(extent: Extent, missing: Missing, renames: &[&str]) -> Loading {
        let renames = renames.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        Loading { extent, missing, renames: Renames::try_from(renames).unwrap(), ..Loading::own("m.json") }
    }

    #[test]
    fn the_same_model_matches_without_a_word() {
        let model = layout(&[("a", &[2]), ("b", &[3, 4])], &[("mean", &[4])]);
        let found = matched(&saved(&model), &model, &Loading::own("m.json")).unwrap();
        assert_eq!(found, Matched { params: vec![Some(0), Some(1)], buffers: vec![Some(2)], notes: vec![] });
    }

    #[test]
    fn renamed_variables_are_found_in_another_order() {
        let old = layout(&[("enc.w", &[2]), ("head.w", &[3]), ("z", &[1])], &[("enc.mean", &[2])]);
        let new = layout(&[("a", &[1]), ("head.w", &[3]), ("trunk.w", &[2])], &[("trunk.mean", &[2])]);
        let how = loading(Extent::Full, Missing::Error, &["enc.*=trunk.*", "z=a"]);
        let found = matched(&saved(&old), &new, &how).unwrap();
        assert_eq!(found.params, [Some(2), Some(1), Some(0)]);
        assert_eq!(found.buffers, [Some(3)]);
        assert_eq!(found.notes, ["loaded 4 of the model's 4 variables from `m.json`, 3 under new names"]);
    }

    #[test]
    fn everything_that_differs_is_listed_as_an_error_or_as_notes() {
        let old = layout(&[("a", &[2]), ("b", &[3]), ("gone", &[1])], &[("kept", &[1])]);
        let new = layout(&[("a", &[2]), ("b", &[4]), ("kept", &[1]), ("new", &[5, 6])], &[]);
        let mut there = saved(&old);
        there.push(Saved { name: "count".into(), shape: vec![], kind: Kind::Unusable("I64".into()), offset: 0 });
        let why = matched(&there, &new, &loading(Extent::Full, Missing::Error, &["typo=x"])).unwrap_err();
        for words in [
            "it lacks new [5, 6]",
            "it has b as [3] and not [4]",
            "kept (not trained there, trained here)",
            "only it has gone [1], count [] of I64",
            "--restore-map typo=x: the checkpoint has no such variable",
            "--restore-map OLD=NEW",
            "--restore-missing init",
            "--model-dir",
        ] {
            assert!(why.contains(words), "`{words}` in {why}");
        }
        let found = matched(&there, &new, &loading(Extent::Full, Missing::Init, &[])).unwrap();
        assert_eq!(found.params, [Some(0), None, Some(3), None]);
        assert_eq!(
            found.notes,
            [
                "loaded 2 of the model's 4 variables from `m.json`",
                "not loaded: the checkpoint lacks new [5, 6], which keeps its initial value",
                "not loaded: the checkpoint has b as [3] and not [4], which keeps its initial value",
                "not loaded: the optimizer's state of kept (not trained there, trained here)",
                "not loaded: only the checkpoint has gone [1]",
                "not loaded: only the checkpoint has count [] of I64",
            ]
        );
        // Without the optimizer's state it does not matter who was trained.
        let same = layout(&[("a", &[2]), ("kept", &[1])], &[]);
        let frozen = layout(&[("a", &[2])], &[("kept", &[1])]);
        assert!(matched(&saved(&frozen), &same, &loading(Extent::ParametersOnly, Missing::Error, &[])).is_ok());
        assert!(matched(&saved(&frozen), &same, &loading(Extent::Full, Missing::Error, &[])).is_err());
    }

    #[test]
    fn two_variables_cannot_become_one() {
        let old = layout(&[("a", &[2]), ("b", &[2])], &[]);
        let new = layout(&[("b", &[2])], &[]);
        let why = matched(&saved(&old), &new, &loading(Extent::Warm, Missing::Init, &["a=b"])).unwrap_err();
        assert!(why.contains("both `a` and `b`"), "{why}");
    }
}
