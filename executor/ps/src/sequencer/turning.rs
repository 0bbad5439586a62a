//! The dial is turned while training goes on, and pushes of groups are accepted.
//!
//! - **PS-7** a push whose first part is applied is applied whole, in the same global step, whatever becomes of its worker,
//!   of the dial or of training; no snapshot is cut and the dial is not turned before that.
//!
//! A turn takes effect at one place of the order. Pushes that wait there are decided by the new rule: what was computed at
//! an older step is dropped by a synchronous one, and its rows return; who was held back is let go. All workers begin
//! anew side by side: steps that one of them had taken alone do not count against it.

use super::{Action, Dial, Mode, Notice, Sequencer};
use crate::decision::DecisionKind;

impl Sequencer {
    pub(super) fn handle_turn(&mut self, id: Option<u64>, dial: Dial, actions: &mut Vec<Action>) {
        if self.mode.is_none() || self.is_half_applied() {
            return self.waiting_turns.push((id, dial));
        }
        let refused = self.mode.and_then(|mode| mode.can_turn().err()).or(dial.mode.can_turn().err());
        if refused.is_none() {
            self.turn(dial, actions);
        }
        if let Some(id) = id {
            actions.push(Action::Emit(Notice::Turned { id, step: self.step, refused }));
        }
    }

    fn turn(&mut self, dial: Dial, actions: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.groups, dial.groups);
        let replicas = u32::try_from(dial.mode.wanted()).unwrap_or(u32::MAX);
        if before != self.groups || (!self.groups.is_empty() && self.mode != Some(dial.mode)) {
            self.decide(DecisionKind::Groups { groups: self.groups.clone(), replicas }, actions);
        }
        self.mode = Some(dial.mode);
        let furthest = self.workers.values().map(|worker| worker.clock).max().unwrap_or_default();
        self.workers
            .values_mut()
            .filter(|worker| !worker.presence.is_gone())
            .for_each(|worker| worker.clock = furthest);
        self.floor = furthest;
    }

    /// Whether some shards, or some groups, have what others have not.
    pub(super) fn is_half_applied(&self) -> bool {
        self.measuring.is_some() || !self.accepted.is_empty()
    }

    /// What had to wait until nothing was half applied.
    pub(super) fn catch_up(&mut self, actions: &mut Vec<Action>) {
        if self.is_half_applied() {
            return;
        }
        for id in std::mem::take(&mut self.waiting_snapshots) {
            self.cut(id, actions);
        }
        for (id, dial) in std::mem::take(&mut self.waiting_turns) {
            self.handle_turn(id, dial, actions);
        }
    }

    /// Groups: accepts what was computed at the current step, and makes the step when enough is accepted. False when
    /// nothing more can be done now.
    pub(super) fn settle_groups(&mut self, mode: Mode, actions: &mut Vec<Action>) -> bool {
        self.drop_stale(actions);
        let wanted = mode.wanted();
        if self.accepted.len() < wanted
            && let Some(&push) = self.complete.first()
        {
            let taken = self.take(push);
            self.complete.retain(|other| *other != push);
            if let Some(commit) = taken {
                let (step, worker, seq) = (self.step + 1, commit.worker, commit.seq);
                self.decide(DecisionKind::Eager { step, worker, seq }, actions);
                self.accepted.push(commit);
            }
        }
        if self.accepted.is_empty() || self.accepted.len() < wanted.min(self.counted()) {
            return !self.complete.is_empty() && self.accepted.len() < wanted;
        }
        self.make_step_of_accepted(actions);
        true
    }

    /// The synchronous part of what is accepted.
    pub(super) fn make_step_of_accepted(&mut self, actions: &mut Vec<Action>) {
        let spare = self.spare.commits();
        let mut commits = std::mem::replace(&mut self.accepted, spare);
        commits.sort_unstable_by_key(|commit| (commit.worker, commit.seq));
        self.update(commits, actions);
    }
}
