//! The update rules, with PyTorch's formulas and names (FTRL and LAMB: TensorFlow's), and their hyper-parameters.

mod exact;
mod kernels;
mod measure;
mod schedule;
#[cfg(test)]
mod tests;
mod update;
mod wide;

use serde::{Deserialize, Serialize};

use crate::error::Error;
pub(crate) use exact::{ExactSum, PARTS};
pub(crate) use kernels::{accumulate, accumulate_two};
pub(crate) use measure::{Plan, Round, square_sum};
pub use schedule::{Decay, Schedule, Scheduled, Warmup};
pub use update::Update;

/// An optimizer and its hyper-parameters, named as in `torch.optim`; defaults are PyTorch's.
///
/// Hyper-parameters are `f64`, as PyTorch keeps them, because `1 - beta2` in `f32` would be off in the fifth digit.
/// Parameters, gradients and slots are `f32`. Formulas: <https://docs.pytorch.org/docs/stable/optim.html>
/// (`SGD`, `Adagrad`, `Adam`, `AdamW`, `RMSprop`, `Adadelta` with `maximize=False`, `amsgrad=False`, dampening 0), for
/// FTRL <https://www.tensorflow.org/api_docs/python/tf/raw_ops/ApplyFtrl>, for LAMB its paper. A rate that changes:
/// [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// g += weight_decay p; m = momentum m + g; p -= learning_rate (nesterov ? g + momentum m : m).
    Sgd {
        #[serde(default = "default_1e3")]
        learning_rate: f64,
        #[serde(default)]
        momentum: f64,
        #[serde(default)]
        nesterov: bool,
        #[serde(default)]
        weight_decay: f64,
    },
    /// g += weight_decay p; s += g²; p -= learning_rate / (1 + (t-1) lr_decay) · g / (√s + eps).
    Adagrad {
        #[serde(default = "default_1e2")]
        learning_rate: f64,
        #[serde(default)]
        initial_accumulator: f64,
        #[serde(default = "default_1e10")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
        #[serde(default)]
        lr_decay: f64,
    },
    /// g += weight_decay p; m += (1-beta1)(g-m); v = beta2 v + (1-beta2) g²;
    /// p -= learning_rate / (1-beta1ᵗ) · m / (√v / √(1-beta2ᵗ) + eps).
    Adam {
        #[serde(default = "default_1e3")]
        learning_rate: f64,
        #[serde(default = "default_beta1")]
        beta1: f64,
        #[serde(default = "default_beta2")]
        beta2: f64,
        #[serde(default = "default_1e8")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
    },
    /// p *= 1 - learning_rate weight_decay; then as Adam without weight decay.
    #[serde(rename = "adamw")]
    AdamW {
        #[serde(default = "default_1e3")]
        learning_rate: f64,
        #[serde(default = "default_beta1")]
        beta1: f64,
        #[serde(default = "default_beta2")]
        beta2: f64,
        #[serde(default = "default_1e8")]
        eps: f64,
        #[serde(default = "default_1e2")]
        weight_decay: f64,
    },
    /// With m and v as Adam's, u = m / (1-beta1ᵗ) / (√v / √(1-beta2ᵗ) + eps) + weight_decay p:
    /// p -= learning_rate ‖p‖ / ‖u‖ · u, the L2 norms over one variable; where one of them is 0, their ratio is 1.
    ///
    /// LAMB for large batches: algorithm 2 of You et al. 2020, <https://arxiv.org/abs/1904.00962>, with φ(x) = x and the
    /// bias corrections of Adam; formula, options and defaults are those of TensorFlow Addons' `LAMB`. Every variable
    /// decays and is scaled. The norms of a variable that several ps hold parts of are summed over them, which costs a
    /// round trip between them per update.
    Lamb {
        #[serde(default = "default_1e3")]
        learning_rate: f64,
        #[serde(default = "default_beta1")]
        beta1: f64,
        #[serde(default = "default_beta2")]
        beta2: f64,
        #[serde(default = "default_1e6")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
    },
    /// g += weight_decay p; s = alpha s + (1-alpha) g²; a += (1-alpha)(g-a); v = centered ? s - a² : s;
    /// m = momentum m + g / (√v + eps); p -= learning_rate m.
    ///
    /// PyTorch takes the root of a v that rounding has made negative, which is NaN; here it is 0.
    #[serde(rename = "rmsprop")]
    RmsProp {
        #[serde(default = "default_1e2")]
        learning_rate: f64,
        #[serde(default = "default_alpha")]
        alpha: f64,
        #[serde(default = "default_1e8")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
        #[serde(default)]
        momentum: f64,
        #[serde(default)]
        centered: bool,
    },
    /// g += weight_decay p; s = rho s + (1-rho) g²; d = √(u + eps) / √(s + eps) · g; u = rho u + (1-rho) d²;
    /// p -= learning_rate d.
    Adadelta {
        #[serde(default = "default_1e0")]
        learning_rate: f64,
        #[serde(default = "default_rho")]
        rho: f64,
        #[serde(default = "default_1e6")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
    },
    /// With q = -learning_rate_power: n' = n + g²; z += g - (n'^q - n^q) / learning_rate · p; n = n';
    /// p = (clamp(z, -l1, l1) - z) / (n^q / learning_rate + 2 l2).
    ///
    /// TensorFlow's `ApplyFtrl`, for the wide part of a model. p is made from the slots alone: where g² is small
    /// beside n, the first update forgets what p was initialised with. An update at rate 0 changes nothing.
    Ftrl {
        #[serde(default = "default_1e3")]
        learning_rate: f64,
        #[serde(default = "default_power")]
        learning_rate_power: f64,
        #[serde(default = "default_1e1")]
        initial_accumulator: f64,
        #[serde(default)]
        l1: f64,
        #[serde(default)]
        l2: f64,
    },
}

fn default_1e0() -> f64 {
    1.0
}
fn default_1e1() -> f64 {
    0.1
}
fn default_1e2() -> f64 {
    1e-2
}
fn default_1e3() -> f64 {
    1e-3
}
fn default_1e6() -> f64 {
    1e-6
}
fn default_1e8() -> f64 {
    1e-8
}
fn default_1e10() -> f64 {
    1e-10
}
fn default_alpha() -> f64 {
    0.99
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.999
}
fn default_power() -> f64 {
    -0.5
}
fn default_rho() -> f64 {
    0.9
}

/// The most slots an optimizer has.
pub(crate) const MAX_SLOTS: usize = 3;

impl Optimizer {
    /// Names of the per-parameter state, in the order in which [`Optimizer::apply`] wants it: PyTorch's names, and
    /// TensorFlow's for FTRL.
    pub fn slots(&self) -> &'static [&'static str] {
        match self {
            Optimizer::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Optimizer::Sgd { .. } => &["momentum_buffer"],
            Optimizer::Adagrad { .. } => &["sum"],
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } | Optimizer::Lamb { .. } => &["exp_avg", "exp_avg_sq"],
            Optimizer::RmsProp { momentum, centered, .. } => match (*momentum != 0.0, centered) {
                (false, false) => &["square_avg"],
                (false, true) => &["square_avg", "grad_avg"],
                (true, false) => &["square_avg", "momentum_buffer"],
                (true, true) => &["square_avg", "momentum_buffer", "grad_avg"],
            },
            Optimizer::Adadelta { .. } => &["square_avg", "acc_delta"],
            Optimizer::Ftrl { .. } => &["accum", "linear"],
        }
    }

    /// The slots of `len` parameters before the first update.
    pub fn initial_slots(&self, len: usize) -> Vec<Vec<f32>> {
        self.slots().iter().map(|slot| vec![self.initial_value(slot); len]).collect()
    }

    /// What every element of each slot is before the first update.
    pub fn initial_values(&self) -> Vec<f32> {
        self.slots().iter().map(|slot| self.initial_value(slot)).collect()
    }

    /// What every element of this slot is before the first update.
    pub fn initial_value(&self, slot: &str) -> f32 {
        match (self, slot) {
            (Optimizer::Adagrad { initial_accumulator, .. }, "sum")
            | (Optimizer::Ftrl { initial_accumulator, .. }, "accum") => *initial_accumulator as f32,
            _ => 0.0,
        }
    }

    /// The same with `factor` times its learning rate.
    pub fn with_rate_times(mut self, factor: f64) -> Self {
        match &mut self {
            Optimizer::Sgd { learning_rate, .. }
            | Optimizer::Adagrad { learning_rate, .. }
            | Optimizer::Adam { learning_rate, .. }
            | Optimizer::AdamW { learning_rate, .. }
            | Optimizer::Lamb { learning_rate, .. }
            | Optimizer::RmsProp { learning_rate, .. }
            | Optimizer::Adadelta { learning_rate, .. }
            | Optimizer::Ftrl { learning_rate, .. } => *learning_rate *= factor,
        }
        self
    }

    /// With a rate that changes from step to step.
    pub fn with_schedule(self, schedule: Schedule) -> Scheduled {
        Scheduled { rule: self, schedule, clip_norm: None }
    }

    /// With each gradient scaled down to this L2 norm, where its own is larger; see [`Scheduled::with_clip_norm`].
    pub fn with_clip_norm(self, max_norm: f64) -> Scheduled {
        Scheduled::from(self).with_clip_norm(max_norm)
    }

    /// Performs update number `optimizer_step` (the first is 1) with the gradient `scale * grad`, in one pass.
    ///
    /// All slices have the length of `params`; `slots` are in the order of [`Optimizer::slots`]. For LAMB they are one
    /// whole variable.
    pub fn apply(
        &self,
        optimizer_step: u64,
        scale: f32,
        params: &mut [f32],
        grad: &[f32],
        slots: &mut [&mut [f32]],
    ) -> Result<(), Error> {
        let update = self.update(optimizer_step);
        if let Optimizer::Lamb { .. } = self {
            let before: Vec<&[f32]> = slots.iter().map(|slot| &**slot).collect();
            let norms = update.norms(scale, params, grad, &before)?;
            return update.trusted(norms).apply(scale, params, grad, slots);
        }
        update.apply(scale, params, grad, slots)
    }
}

impl Optimizer {
    /// Plain SGD.
    pub fn sgd(learning_rate: f64) -> Self {
        Self::Sgd { learning_rate, momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }

    /// Adagrad with PyTorch's defaults.
    pub fn adagrad(learning_rate: f64) -> Self {
        let eps = default_1e10();
        Self::Adagrad { learning_rate, initial_accumulator: 0.0, eps, weight_decay: 0.0, lr_decay: 0.0 }
    }

    /// Adam with PyTorch's defaults.
    pub fn adam(learning_rate: f64) -> Self {
        let (beta1, beta2) = (default_beta1(), default_beta2());
        Self::Adam { learning_rate, beta1, beta2, eps: default_1e8(), weight_decay: 0.0 }
    }

    /// AdamW with PyTorch's defaults.
    pub fn adamw(learning_rate: f64) -> Self {
        let (beta1, beta2) = (default_beta1(), default_beta2());
        Self::AdamW { learning_rate, beta1, beta2, eps: default_1e8(), weight_decay: default_1e2() }
    }

    /// LAMB with TensorFlow Addons' defaults.
    pub fn lamb(learning_rate: f64) -> Self {
        let (beta1, beta2) = (default_beta1(), default_beta2());
        Self::Lamb { learning_rate, beta1, beta2, eps: default_1e6(), weight_decay: 0.0 }
    }

    /// RMSprop with PyTorch's defaults.
    pub fn rmsprop(learning_rate: f64) -> Self {
        let (alpha, eps) = (default_alpha(), default_1e8());
        Self::RmsProp { learning_rate, alpha, eps, weight_decay: 0.0, momentum: 0.0, centered: false }
    }

    /// Adadelta with PyTorch's defaults; its own rate is 1.
    pub fn adadelta(learning_rate: f64) -> Self {
        Self::Adadelta { learning_rate, rho: default_rho(), eps: default_1e6(), weight_decay: 0.0 }
    }

    /// FTRL with TensorFlow's defaults.
    pub fn ftrl(learning_rate: f64) -> Self {
        let (learning_rate_power, initial_accumulator) = (default_power(), default_1e1());
        Self::Ftrl { learning_rate, learning_rate_power, initial_accumulator, l1: 0.0, l2: 0.0 }
    }
}
