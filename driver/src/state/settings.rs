//! The dial is turned by somebody outside while the job runs: what can be, where it takes effect, what is answered.

use tfos_core::config::Consistency;
use tfos_core::failure::Cause;
use tfos_core::proto::{SetConsistency, from_driver::Message as Order};

use super::phase::Phase;
use super::{Stage, State};
use crate::event::Action;
use crate::settings::Answer;
use crate::state::PhaseKind;

impl State {
    pub(super) fn handle_set(&mut self, number: u64, consistency: String, out: &mut Vec<Action>) {
        let shape = self.options.shape;
        let checked = if shape.num_ps == 0 {
            Err("the job has no parameter servers: its only trainer makes each update by itself".to_owned())
        } else {
            Consistency::parse(&consistency, shape.num_trainers(), shape.num_ps).map_err(|all| all.join("; "))
        };
        let why = match (checked, &mut self.stage) {
            (Err(why), _) => why,
            (Ok(checked), Stage::Running(phase)) if phase.spec.kind == PhaseKind::Train => {
                return phase.set(number, &checked, out);
            }
            (Ok(_), _) => "the job does not train at the moment; try again when it does".to_owned(),
        };
        let answer = Answer { consistency, global_step: None, error: Some(why) };
        out.push(Action::AnswerSet { number, answer });
    }
}

impl Phase {
    fn set(&mut self, number: u64, consistency: &Consistency, out: &mut Vec<Action>) {
        let Some(executor) = self.sequencer() else { return };
        self.sets.insert(number, consistency.to_string());
        let consistency = serde_json::to_string(consistency).unwrap_or_default();
        let order = SetConsistency { phase: self.id, id: number, consistency };
        out.push(Action::Send { executor, message: Order::SetConsistency(order) });
    }

    /// The node that orders the updates has turned the dial, or says why it cannot.
    pub(super) fn consistency_set(
        &mut self,
        number: u64,
        step: u64,
        error: String,
        out: &mut Vec<Action>,
    ) -> Result<(), Cause> {
        if let Some(consistency) = self.sets.remove(&number) {
            let refused = (!error.is_empty()).then_some(error);
            let global_step = refused.is_none().then_some(step);
            out.push(Action::AnswerSet { number, answer: Answer { consistency, global_step, error: refused } });
        }
        Ok(())
    }

    /// Nobody turns it any more.
    pub(super) fn give_up_sets(&mut self, out: &mut Vec<Action>) {
        for (number, consistency) in std::mem::take(&mut self.sets) {
            let error = Some("the job has ended".to_owned());
            out.push(Action::AnswerSet { number, answer: Answer { consistency, global_step: None, error } });
        }
    }
}

#[cfg(test)]
mod tests {
    use tfos_core::proto::{ConsistencySet, from_driver, from_executor::Message};

    use super::super::tests::{Job, SHAPE};
    use super::*;
    use crate::event::Event;

    fn ask(job: &mut Job, number: u64, text: &str) -> Vec<Action> {
        job.event(Event::SetAsked { number, consistency: text.into() });
        job.take()
    }

    fn answers(actions: Vec<Action>) -> Vec<(u64, Option<u64>, String)> {
        let of = |action| match action {
            Action::AnswerSet { number, answer } => {
                Some((number, answer.global_step, answer.error.unwrap_or_default()))
            }
            _ => None,
        };
        actions.into_iter().filter_map(of).collect()
    }

    #[test]
    fn a_setting_goes_to_the_first_ps_and_its_answer_comes_from_there() {
        let mut job = Job::formed();
        let early = answers(ask(&mut job, 1, "async"));
        assert!(early[0].2.contains("does not train"), "{early:?}");
        job.start(100);
        job.take();
        let wrong = answers(ask(&mut job, 2, "sync:3"));
        assert!(wrong[0].2.contains("give 1 to 2"), "{wrong:?}");
        job.event(Event::SetAsked { number: 3, consistency: "ssp:4".into() });
        let sent = job.sent(0);
        let [from_driver::Message::SetConsistency(order)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!(serde_json::from_str(&order.consistency).ok(), Some(Consistency::Bounded { max_staleness: 4 }));
        let said = |id, error: &str| {
            let set = ConsistencySet { phase: 1, id, global_step: 7, error: error.into() };
            Message::ConsistencySet(set)
        };
        job.says(0, said(3, "")).says(0, said(3, ""));
        assert_eq!(answers(job.take()), [(3, Some(7), String::new())]);
        ask(&mut job, 4, "local-sgd:2");
        job.says(0, said(4, "not now"));
        assert_eq!(answers(job.take()), [(4, None, "not now".into())]);
    }

    #[test]
    fn a_job_without_ps_has_nothing_to_set() {
        let mut job = Job::new(tfos_core::cluster::Shape { cluster_size: 1, num_ps: 0, ..SHAPE });
        let told = answers(ask(&mut job, 1, "sync"));
        assert!(told[0].2.contains("no parameter servers"), "{told:?}");
    }
}
