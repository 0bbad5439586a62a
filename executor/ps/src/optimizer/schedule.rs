//! Learning-rate schedules: by what an optimizer's rate is multiplied at a global step.
//!
//! - **OPT-1** the rate of an update depends on the global step that it starts from and on nothing else, so a job that
//!   is resumed, on whatever cluster, goes on with the rate that it would have had.

use serde::{Deserialize, Serialize};

use super::{Optimizer, Update};

/// How the rate changes over the global steps: linear warm-up, then a decay. The default is a constant rate.
///
/// The decay counts from the end of the warm-up, as in `torch.optim.lr_scheduler.SequentialLR` after `LinearLR` and
/// in `tf.keras.optimizers.schedules.CosineDecay`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    #[serde(default)]
    pub decay: Decay,
}

/// A rate that grows linearly from `start_factor` to 1 of itself: PyTorch's `LinearLR`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// The update from this global step on is the first at the full rate.
    pub steps: u64,
    #[serde(default = "default_start")]
    pub start_factor: f64,
}

fn default_start() -> f64 {
    1.0 / 3.0
}

/// What follows the warm-up; t counts the global steps since then.
///
/// Formulas: `StepLR`, `CosineAnnealingLR` and `PolynomialLR` of
/// <https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate>; with an `end_factor`, TensorFlow's
/// `CosineDecay` (there `alpha`) and `PolynomialDecay` of
/// <https://www.tensorflow.org/api_docs/python/tf/keras/optimizers/schedules>. After `total_steps` the rate stays.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// 1.
    #[default]
    Constant,
    /// gamma^⌊t / step_size⌋.
    Step {
        step_size: u64,
        #[serde(default = "default_gamma")]
        gamma: f64,
    },
    /// end_factor + (1 - end_factor) (1 + cos(π t / total_steps)) / 2.
    Cosine {
        total_steps: u64,
        #[serde(default)]
        end_factor: f64,
    },
    /// end_factor + (1 - end_factor) (1 - t / total_steps)^power.
    Polynomial {
        total_steps: u64,
        #[serde(default = "default_power")]
        power: f64,
        #[serde(default)]
        end_factor: f64,
    },
}

fn default_gamma() -> f64 {
    0.1
}
fn default_power() -> f64 {
    1.0
}

impl Schedule {
    /// The optimizer's own rate, always.
    pub fn constant() -> Self {
        Self::default()
    }

    /// The rate times `gamma` every `step_size` steps.
    pub fn step(step_size: u64, gamma: f64) -> Self {
        Decay::Step { step_size, gamma }.into()
    }

    /// Half a cosine down to 0 at `total_steps`.
    pub fn cosine(total_steps: u64) -> Self {
        Decay::Cosine { total_steps, end_factor: 0.0 }.into()
    }

    /// Down to 0 at `total_steps`; with power 1, a straight line.
    pub fn polynomial(total_steps: u64, power: f64) -> Self {
        Decay::Polynomial { total_steps, power, end_factor: 0.0 }.into()
    }

    /// With a warm-up of so many steps before it, from `start_factor` of the rate.
    pub fn with_warmup(self, steps: u64, start_factor: f64) -> Self {
        Self { warmup: Some(Warmup { steps, start_factor }), ..self }
    }

    /// What the rate of the update from global step `step` to the next is multiplied by.
    pub fn factor(&self, step: u64) -> f64 {
        let mut t = step;
        if let Some(Warmup { steps, start_factor }) = self.warmup {
            if step < steps {
                return start_factor + (1.0 - start_factor) * (step as f64 / steps as f64);
            }
            t -= steps;
        }
        // How much of the decay is over; all of it where there is nothing to decay over.
        let part = |total: u64| if t < total { t as f64 / total as f64 } else { 1.0 };
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Step { step_size, gamma } => gamma.powf((t / step_size.max(1)) as f64),
            Decay::Cosine { total_steps, end_factor } => {
                let cosine = (std::f64::consts::PI * part(total_steps)).cos();
                end_factor + (1.0 - end_factor) * (1.0 + cosine) / 2.0
            }
            Decay::Polynomial { total_steps, power, end_factor } => {
                end_factor + (1.0 - end_factor) * (1.0 - part(total_steps)).powf(power)
            }
        }
    }

    fn is_constant(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Decay> for Schedule {
    fn from(decay: Decay) -> Self {
        Self { warmup: None, decay }
    }
}

/// An optimizer with its schedule and clipping: what the ps are given, and what a checkpoint names.
///
/// As JSON it is the optimizer's with the fields `schedule` and `clip_norm` more, which are left out where the rate is
/// constant and nothing is clipped. So it reads the optimizers of checkpoints that knew neither.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scheduled {
    #[serde(flatten)]
    pub rule: Optimizer,
    #[serde(default, skip_serializing_if = "Schedule::is_constant")]
    pub schedule: Schedule,
    /// See [`Scheduled::with_clip_norm`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

impl Scheduled {
    /// With gradients clipped by global norm: where the L2 norm over all variables (and shards) of the gradient of an
    /// update is above `max_norm` (positive), the gradient is scaled down to it.
    ///
    /// PyTorch's `clip_grad_norm_`: the factor is max_norm / (norm + 1e-6), at most 1. It is the gradient that is
    /// applied: in sync mode the mean of the workers', in async mode each by itself. With several ps it costs a round
    /// trip between them per update. <https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html>
    pub fn with_clip_norm(self, max_norm: f64) -> Self {
        Self { clip_norm: Some(max_norm), ..self }
    }

    /// The optimizer for the update from global step `step` to the next.
    pub fn at(&self, step: u64) -> Optimizer {
        self.rule.with_rate_times(self.schedule.factor(step))
    }

    /// That update; `optimizer_step` (the first is 1) counts from where the slots were fresh.
    pub fn update(&self, step: u64, optimizer_step: u64) -> Update {
        self.at(step).update(optimizer_step)
    }

    /// As [`Optimizer::slots`].
    pub fn slots(&self) -> &'static [&'static str] {
        self.rule.slots()
    }

    /// As [`Optimizer::initial_slots`].
    pub fn initial_slots(&self, len: usize) -> Vec<Vec<f32>> {
        self.rule.initial_slots(len)
    }

    /// As [`Optimizer::initial_values`].
    pub fn initial_values(&self) -> Vec<f32> {
        self.rule.initial_values()
    }
}

impl From<Optimizer> for Scheduled {
    fn from(rule: Optimizer) -> Self {
        rule.with_schedule(Schedule::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn factors(schedule: Schedule, wanted: &[(u64, f64)]) {
        for &(step, factor) in wanted {
            let found = schedule.factor(step);
            assert!((found - factor).abs() < 1e-15, "{schedule:?} at {step}: {found} and not {factor}");
        }
    }

    #[test]
    fn decays_begin_at_the_full_rate_and_stay_where_they_end() {
        factors(Schedule::constant(), &[(0, 1.0), (u64::MAX, 1.0)]);
        factors(Schedule::step(10, 0.5), &[(0, 1.0), (9, 1.0), (10, 0.5), (19, 0.5), (20, 0.25)]);
        factors(Schedule::cosine(100), &[(0, 1.0), (50, 0.5), (100, 0.0), (1000, 0.0)]);
        factors(Schedule::polynomial(100, 2.0), &[(0, 1.0), (50, 0.25), (100, 0.0), (u64::MAX, 0.0)]);
        let cosine = Decay::Cosine { total_steps: 30, end_factor: 0.1 };
        factors(cosine.into(), &[(0, 1.0), (10, 0.775), (15, 0.55), (30, 0.1), (31, 0.1)]);
        let polynomial = Decay::Polynomial { total_steps: 4, power: 1.0, end_factor: 0.2 };
        factors(polynomial.into(), &[(1, 0.8), (2, 0.6), (4, 0.2), (5, 0.2)]);
    }

    #[test]
    fn the_decay_counts_from_the_end_of_the_warm_up() {
        let schedule = Schedule::cosine(100).with_warmup(10, 0.0);
        factors(schedule, &[(0, 0.0), (1, 0.1), (9, 0.9), (10, 1.0), (60, 0.5), (110, 0.0)]);
        factors(Schedule::constant().with_warmup(4, 0.5), &[(0, 0.5), (1, 0.625), (4, 1.0), (5, 1.0)]);
        factors(Schedule::constant().with_warmup(0, 0.0), &[(0, 1.0)]);
    }

    #[test]
    fn lengths_of_zero_are_over_at_once() {
        factors(Schedule::cosine(0), &[(0, 0.0)]);
        factors(Schedule::polynomial(0, 1.0), &[(0, 0.0)]);
        factors(Schedule::step(0, 0.5), &[(0, 1.0), (2, 0.25)]);
    }

    #[test]
    fn a_checkpoint_without_a_schedule_is_one_of_a_constant_rate() {
        let old = r#"{"name":"adam","learning_rate":0.01,"beta1":0.9,"beta2":0.999,"eps":1e-8,"weight_decay":0.0}"#;
        let read: Scheduled = serde_json::from_str(old).unwrap();
        assert_eq!(read, Optimizer::adam(0.01).into());
        // And is written as it always was, so that an older program reads it too.
        assert_eq!(serde_json::from_str::<Optimizer>(&serde_json::to_string(&read).unwrap()).unwrap(), read.rule);
        assert!(serde_json::from_str::<Optimizer>(&old.replace('}', r#","schedule":{}}"#)).is_err());
        let clipped = Optimizer::adam(0.01).with_clip_norm(0.5);
        let value = serde_json::to_value(clipped).unwrap();
        assert_eq!((&value["clip_norm"], &value["schedule"]), (&0.5.into(), &serde_json::Value::Null));
        assert_eq!(serde_json::from_value::<Scheduled>(value).unwrap(), clipped);
    }

    #[test]
    fn every_schedule_survives_json_and_misspelt_ones_do_not() {
        let decays = [
            Decay::Constant,
            Decay::Step { step_size: 30, gamma: 0.3 },
            Decay::Cosine { total_steps: 90, end_factor: 0.01 },
            Decay::Polynomial { total_steps: 90, power: 2.0, end_factor: 0.5 },
        ];
        for decay in decays {
            for schedule in [decay.into(), Schedule::from(decay).with_warmup(5, 0.1)] {
                let scheduled = Optimizer::ftrl(0.1).with_schedule(schedule);
                let text = serde_json::to_string(&scheduled).unwrap();
                assert_eq!(serde_json::from_str::<Scheduled>(&text).unwrap(), scheduled, "{text}");
                // The manifest goes through a value.
                let value = serde_json::to_value(scheduled).unwrap();
                assert_eq!(serde_json::from_value::<Scheduled>(value).unwrap(), scheduled, "{text}");
            }
        }
        let short = r#"{"name":"sgd","schedule":{"decay":{"name":"cosine","total_steps":9},"warmup":{"steps":2}}}"#;
        let short: Scheduled = serde_json::from_str(short).unwrap();
        assert_eq!(short, Optimizer::sgd(1e-3).with_schedule(Schedule::cosine(9).with_warmup(2, 1.0 / 3.0)));
        for wrong in [
            r#"{"name":"sgd","shedule":{}}"#,
            r#"{"name":"sgd","schedule":{"decay":{"name":"cosine"}}}"#,
            r#"{"name":"sgd","schedule":{"decay":{"name":"cosine","total_steps":9,"gamma":1}}}"#,
            r#"{"name":"sgd","schedule":{"warm_up":{"steps":2}}}"#,
        ] {
            assert!(serde_json::from_str::<Scheduled>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_rate_changes() {
        let rule = Optimizer::RmsProp {
            learning_rate: 0.5,
            alpha: 0.9,
            eps: 1e-6,
            weight_decay: 0.1,
            momentum: 0.8,
            centered: true,
        };
        let half = rule.with_schedule(Schedule::cosine(10)).at(5);
        assert!(matches!(half, Optimizer::RmsProp { learning_rate: 0.25, alpha: 0.9, momentum: 0.8, .. }));
    }
}
