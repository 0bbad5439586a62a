//! The whole protocol as a model: two drivers and a clean-up on one store, each request by itself, in every order, each of
//! them ending anywhere. The decisions are those of production; the order of requests is that of the driver's
//! `model_dir.rs` and `commit.rs`.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::ids::{Generation, GlobalStep};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum File {
    /// A claim, a part, a segment.
    Plain,
    Start(Start),
    Manifest(Generation, Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store(BTreeMap<String, File>);

impl Store {
    fn claimed(&self) -> Generation {
        self.0.keys().filter_map(|k| Paths::parse_generation(k.strip_prefix("job/")?)).max().unwrap_or_default()
    }

    fn starts(&self) -> Starts {
        let start = |(k, f): (&String, &File)| match f {
            File::Start(start) => Some((Paths::parse_start(k.strip_prefix("job/")?)?, *start)),
            _ => None,
        };
        Starts(self.0.iter().filter_map(start).collect())
    }

    fn manifests(&self) -> Vec<Found> {
        let found = |(k, f): (&String, &File)| match f {
            File::Manifest(g, names) => Some(Found { step: Paths::step_of(k)?, content: Some((*g, names.clone())) }),
            _ => None,
        };
        self.0.iter().filter_map(found).collect()
    }

    fn whole(&self, names: &[String]) -> bool {
        names.iter().all(|n| self.0.contains_key(n))
    }

    fn valid(&self) -> Vec<(GlobalStep, Generation, Vec<String>)> {
        let starts = self.starts();
        let read = self.manifests().into_iter().filter_map(|m| m.content.map(|(g, names)| (m.step, g, names)));
        read.filter(|(step, g, _)| !starts.is_void(*step, *g)).collect()
    }
}

/// Where a driver is; each turn is one request to the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum At {
    Claim,
    /// The manifests, then the starts: a start that is not seen then is of an older claim, and its owner will notice ours.
    ReadManifests,
    ReadStarts(Vec<Found>),
    Begin,
    CheckBegin,
    ListLedger,
    Tidy(Vec<String>),
    Part,
    Segment,
    CheckBefore,
    Create,
    CheckAfter,
    ListOld,
    Retain(Vec<String>),
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Driver {
    at: At,
    generation: Generation,
    restored: Option<Base>,
    ledger: Vec<String>,
    aside: Vec<GlobalStep>,
    /// Steps of its manifests.
    mine: Vec<GlobalStep>,
    /// Step of the newest checkpoint that it takes for committed.
    told: Option<GlobalStep>,
    /// Checkpoints still to write.
    left: u32,
}

impl Driver {
    fn last(&self) -> GlobalStep {
        self.mine.last().copied().or(self.restored.map(|b| b.step)).unwrap_or_default()
    }

    fn step(&self) -> GlobalStep {
        GlobalStep(self.last().0 + 10)
    }

    fn part(&self) -> String {
        Paths::part(self.step(), self.generation, 0, 1)
    }

    fn segment(&self) -> String {
        Paths::ledger_segment(self.generation, self.last(), self.step())
    }

    fn fenced(&self, store: &Store) -> bool {
        store.claimed() > self.generation
    }

    fn turn(&mut self, store: &mut Store) {
        let next = match std::mem::replace(&mut self.at, At::Gone) {
            At::Claim => {
                self.generation = Generation(store.claimed().0 + 1);
                store.0.insert(Paths::generation(self.generation), File::Plain);
                At::ReadManifests
            }
            At::ReadManifests => At::ReadStarts(store.manifests()),
            At::ReadStarts(found) => {
                self.choose(store, found);
                At::Begin
            }
            At::Begin => {
                store.0.insert(Paths::start(self.generation), File::Start(Start { restored: self.restored }));
                At::CheckBegin
            }
            At::CheckBegin if self.fenced(store) => At::Gone,
            At::CheckBegin => At::ListLedger,
            At::ListLedger => {
                let aside = self.aside.iter().map(|s| Paths::manifest(*s));
                let older = |k: &&String| Paths::parse_segment(k).is_some_and(|(_, g)| g < self.generation);
                let orphans = store.0.keys().filter(older).filter(|k| !self.ledger.contains(k)).cloned();
                At::Tidy(aside.chain(orphans).collect())
            }
            At::Tidy(mut files) if !files.is_empty() => {
                store.0.remove(&files.remove(0));
                At::Tidy(files)
            }
            At::Tidy(_) => At::Part,
            At::Part => {
                store.0.insert(self.part(), File::Plain);
                At::Segment
            }
            At::Segment => {
                store.0.insert(self.segment(), File::Plain);
                At::CheckBefore
            }
            At::CheckBefore if self.fenced(store) => At::Gone,
            At::CheckBefore => At::Create,
            At::Create => self.create(store),
            At::CheckAfter if self.fenced(store) => At::Gone,
            At::CheckAfter => {
                self.told = Some(self.last());
                At::ListOld
            }
            At::ListOld => {
                let keep = Retention { newest: 1, every: None, best: None };
                let here = |s: &GlobalStep| self.mine.contains(s) || self.restored.is_some_and(|b| *s <= b.step);
                let steps: Vec<GlobalStep> = store.manifests().iter().map(|m| m.step).filter(here).collect();
                let files = |s: GlobalStep| {
                    let all = store.0.keys().filter(move |k| Paths::step_of(k) == Some(s) && **k != Paths::manifest(s));
                    std::iter::once(Paths::manifest(s)).chain(all.cloned()).collect::<Vec<_>>()
                };
                At::Retain(compute_deletions(&steps, &BTreeMap::new(), &keep).into_iter().flat_map(files).collect())
            }
            At::Retain(mut files) if !files.is_empty() => {
                store.0.remove(&files.remove(0));
                At::Retain(files)
            }
            At::Retain(_) | At::Gone => {
                self.left = self.left.saturating_sub(1);
                if self.left == 0 { At::Gone } else { At::Part }
            }
        };
        self.at = next;
    }

    fn choose(&mut self, store: &Store, found: Vec<Found>) {
        let starts = store.starts();
        let read = |m: &Found| m.content.clone().unwrap_or_default();
        let candidates = found.iter().map(|m| {
            let (g, names) = read(m);
            let bad = starts.is_void(m.step, g) || !store.whole(&names);
            Candidate { step: m.step, damage: bad.then(|| "bad".to_owned()) }
        });
        let target = compute_target(candidates.collect());
        self.aside = target.skipped.iter().map(|c| c.step).collect();
        if let Some(m) = found.iter().find(|m| Some(m.step) == target.restore) {
            let (generation, names) = read(m);
            self.restored = Some(Base { step: m.step, generation });
            self.ledger = names.into_iter().filter(|n| Paths::parse_segment(n).is_some()).collect();
        }
    }

    fn create(&mut self, store: &mut Store) -> At {
        let (step, path) = (self.step(), Paths::manifest(self.step()));
        if let Some(File::Manifest(theirs, _)) = store.0.get(&path)
            && *theirs > self.generation
        {
            return At::Gone;
        }
        self.ledger.push(self.segment());
        let names = self.ledger.iter().cloned().chain([self.part()]).collect();
        store.0.insert(path, File::Manifest(self.generation, names));
        self.mine.push(step);
        At::CheckAfter
    }

    fn is_gone(&self) -> bool {
        self.at == At::Gone
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Cleaner {
    Files,
    Starts(Vec<String>),
    Manifests(Vec<String>, Starts, Generation),
    Delete(Vec<String>),
}

impl Cleaner {
    fn turn(&mut self, store: &mut Store) {
        *self = match self.clone() {
            Self::Files => Self::Starts(store.0.keys().cloned().collect()),
            Self::Starts(files) => Self::Manifests(files, store.starts(), store.claimed()),
            Self::Manifests(files, starts, claimed) => {
                Self::Delete(compute_garbage(&files, &store.manifests(), &starts, claimed))
            }
            Self::Delete(mut files) => {
                if !files.is_empty() {
                    store.0.remove(&files.remove(0));
                }
                Self::Delete(files)
            }
        };
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Delete(files) if files.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    store: Store,
    old: Driver,
    new: Driver,
    cleaner: Cleaner,
}

/// Generation 1 has started from nothing and committed steps 10 and 20, of which it keeps the newer one.
fn world() -> World {
    let driver = |at| Driver {
        at,
        generation: Generation(1),
        restored: None,
        ledger: vec![],
        aside: vec![],
        mine: vec![],
        told: None,
        left: 2,
    };
    let (mut store, mut old) = (Store::default(), driver(At::Part));
    store.0.insert(Paths::generation(Generation(1)), File::Plain);
    store.0.insert(Paths::start(Generation(1)), File::Start(Start { restored: None }));
    while !old.is_gone() {
        old.turn(&mut store);
    }
    assert_eq!(store.manifests().len(), 1);
    old = Driver { at: At::Part, left: 2, ..old };
    let new = Driver { generation: Generation(0), left: 1, ..driver(At::Claim) };
    World { store, old, new, cleaner: Cleaner::Files }
}

fn check(w: &World) {
    let valid = w.store.valid();
    assert!(!valid.is_empty(), "there is nothing to restore: {w:#?}");
    for (step, _, names) in &valid {
        assert!(w.store.whole(names), "the manifest of step {step} names what is not there: {w:#?}");
    }
    let newest = valid.iter().max_by_key(|(step, ..)| *step).map(|(step, g, _)| (*step, *g));
    if let Some(told) = w.new.told {
        assert_eq!(newest.map(|(_, g)| g), Some(w.new.generation), "an older one committed after {told}: {w:#?}");
    }
    // What the older one was told is committed is where the newer one starts, or is there to start from.
    let from = if w.store.starts().newest() == Some(w.new.generation) {
        w.new.restored.map(|b| b.step)
    } else {
        newest.map(|(step, _)| step)
    };
    assert!(w.old.told.is_none_or(|told| from >= Some(told)), "a committed checkpoint is lost: {w:#?}");
}

#[test] // CKP-1, CKP-2, CKP-3, CKP-4
fn in_every_order_of_requests_the_older_generation_commits_nothing_behind_the_newer_one() {
    let mut seen = HashSet::new();
    let mut todo = vec![world()];
    let (mut fenced, mut late, mut cleaned) = (0, 0, 0);
    while let Some(w) = todo.pop() {
        if !seen.insert(w.clone()) {
            continue;
        }
        check(&w);
        let starts = w.store.starts();
        late += usize::from(w.old.mine.iter().any(|s| starts.is_void(*s, Generation(1))));
        fenced += usize::from(w.old.is_gone() && w.old.left == 2);
        cleaned += usize::from(matches!(&w.cleaner, Cleaner::Delete(files) if !files.is_empty()));
        for (runs, turn) in [
            (!w.old.is_gone(), (|w: &mut World| w.old.turn(&mut w.store)) as fn(&mut World)),
            (!w.new.is_gone(), |w| w.new.turn(&mut w.store)),
            (!w.cleaner.is_done(), |w| w.cleaner.turn(&mut w.store)),
        ] {
            if runs {
                let mut after = w.clone();
                turn(&mut after);
                todo.push(after);
            }
        }
    }
    // The orders that it is about have come up.
    assert!(late > 0 && fenced > 0 && cleaned > 0, "{late} late, {fenced} fenced, {cleaned} cleaned of {}", seen.len());
}
