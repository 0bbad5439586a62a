//! One update: what is the same for all parameters is computed once, then applied to any range of them.

use super::kernels::{self, Adadelta, Adagrad, Adam, Ftrl, Momentum, RmsProp};
use super::wide::{Loops, wide};
use super::{ExactSum, Optimizer};
use crate::error::Error;

/// One update, ready to be applied to any range of the parameters, block by block.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    rule: Rule,
    /// What the gradient is multiplied by.
    clip: f32,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Sgd {
        learning_rate: f32,
        weight_decay: f32,
    },
    Momentum {
        rates: Momentum,
        nesterov: bool,
    },
    Adagrad(Adagrad),
    Adam(Adam),
    Lamb {
        rates: Adam,
        learning_rate: f64,
        /// ‖p‖ / ‖u‖.
        trust: f64,
    },
    RmsProp {
        rates: RmsProp,
        has_momentum: bool,
        centered: bool,
    },
    Adadelta(Adadelta),
    Ftrl {
        rates: Ftrl,
        is_root: bool,
    },
    /// FTRL at rate 0, where its formula divides by 0.
    FtrlRests,
}

impl Optimizer {
    /// What is the same for all parameters in update number `optimizer_step` (the first is 1), computed in `f64`.
    pub fn update(&self, optimizer_step: u64) -> Update {
        let t = optimizer_step.max(1) as f64;
        let rule = match *self {
            Optimizer::Sgd { learning_rate, momentum: 0.0, weight_decay, .. } => {
                Rule::Sgd { learning_rate: learning_rate as f32, weight_decay: weight_decay as f32 }
            }
            Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay } => Rule::Momentum {
                rates: Momentum {
                    learning_rate: learning_rate as f32,
                    momentum: momentum as f32,
                    weight_decay: weight_decay as f32,
                },
                nesterov,
            },
            Optimizer::Adagrad { learning_rate, eps, weight_decay, lr_decay, .. } => Rule::Adagrad(Adagrad {
                learning_rate: (learning_rate / (1.0 + (t - 1.0) * lr_decay)) as f32,
                eps: eps as f32,
                weight_decay: weight_decay as f32,
            }),
            Optimizer::Adam { learning_rate, beta1, beta2, eps, weight_decay } => {
                Rule::Adam(Adam { weight_decay: weight_decay as f32, ..adam(learning_rate, [beta1, beta2], eps, t) })
            }
            Optimizer::AdamW { learning_rate, beta1, beta2, eps, weight_decay } => {
                let keep = (1.0 - learning_rate * weight_decay) as f32;
                Rule::Adam(Adam { keep, ..adam(learning_rate, [beta1, beta2], eps, t) })
            }
            Optimizer::Lamb { learning_rate, beta1, beta2, eps, weight_decay } => {
                let rates = Adam { weight_decay: weight_decay as f32, ..adam(1.0, [beta1, beta2], eps, t) };
                Rule::Lamb { rates, learning_rate, trust: 1.0 }
            }
            Optimizer::RmsProp { learning_rate, alpha, eps, weight_decay, momentum, centered } => Rule::RmsProp {
                rates: RmsProp {
                    learning_rate: learning_rate as f32,
                    alpha: alpha as f32,
                    one_minus_alpha: (1.0 - alpha) as f32,
                    eps: eps as f32,
                    weight_decay: weight_decay as f32,
                    momentum: momentum as f32,
                },
                has_momentum: momentum != 0.0,
                centered,
            },
            Optimizer::Adadelta { learning_rate, rho, eps, weight_decay } => Rule::Adadelta(Adadelta {
                learning_rate: learning_rate as f32,
                rho: rho as f32,
                one_minus_rho: (1.0 - rho) as f32,
                eps: eps as f32,
                weight_decay: weight_decay as f32,
            }),
            Optimizer::Ftrl { learning_rate: 0.0, .. } => Rule::FtrlRests,
            Optimizer::Ftrl { learning_rate, learning_rate_power, l1, l2, .. } => Rule::Ftrl {
                rates: Ftrl {
                    learning_rate: learning_rate as f32,
                    power: -learning_rate_power as f32,
                    l1: l1 as f32,
                    two_l2: (2.0 * l2) as f32,
                },
                is_root: learning_rate_power == -0.5,
            },
        };
        Update { rule, clip: 1.0 }
    }
}

/// Update number `t` without weight decay.
fn adam(learning_rate: f64, [beta1, beta2]: [f64; 2], eps: f64, t: f64) -> Adam {
    Adam {
        keep: 1.0,
        step_size: (learning_rate / (1.0 - beta1.powf(t))) as f32,
        one_minus_beta1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        // Multiplied, as a division per element would cost as much as the square root.
        inverse_root: (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
        eps: eps as f32,
        weight_decay: 0.0,
    }
}

impl Update {
    /// The same with the gradient multiplied by `clip`.
    pub(super) fn clipped(self, clip: f32) -> Update {
        Update { clip, ..self }
    }

    /// LAMB: Σ p² and Σ u² of a part of a variable, in `f64`; all slices have the length of `params`.
    pub(crate) fn norms(&self, scale: f32, params: &[f32], grad: &[f32], slots: &[&[f32]]) -> Result<[f64; 2], Error> {
        check(params.len(), grad, slots.iter().copied())?;
        match (self.rule, slots) {
            (Rule::Lamb { rates, .. }, [mean, square]) => {
                Ok(kernels::lamb_norms(params, grad, mean, square, scale * self.clip, rates))
            }
            (_, slots) => Err(not_lamb(slots.len())),
        }
    }

    /// As [`Update::norms`], without rounding.
    pub(crate) fn add_norms(
        &self,
        sums: &mut [ExactSum; 2],
        scale: f32,
        params: &[f32],
        grad: &[f32],
        slots: &[&[f32]],
    ) -> Result<(), Error> {
        check(params.len(), grad, slots.iter().copied())?;
        match (self.rule, slots) {
            (Rule::Lamb { rates, .. }, [mean, square]) => {
                let [weights, updates] = sums;
                weights.add(params.iter().copied());
                updates.add(kernels::lamb_directions(params, grad, mean, square, scale * self.clip, rates));
                Ok(())
            }
            (_, slots) => Err(not_lamb(slots.len())),
        }
    }

    /// LAMB: the same for a variable with these sums of squares, Σ p² and Σ u².
    pub(crate) fn trusted(mut self, [weight, update]: [f64; 2]) -> Update {
        if let Rule::Lamb { trust, .. } = &mut self.rule
            && weight > 0.0
            && update > 0.0
        {
            *trust = weight.sqrt() / update.sqrt();
        }
        self
    }

    /// As [`Optimizer::apply`]; for LAMB with a ratio of norms of 1.
    pub fn apply(&self, scale: f32, params: &mut [f32], grad: &[f32], slots: &mut [&mut [f32]]) -> Result<(), Error> {
        check(params.len(), grad, slots.iter().map(|slot| &**slot))?;
        let scale = scale * self.clip;
        wide(Apply { update: self, scale, params, grad, slots })
    }

    /// Lengths have been checked, and `scale` is that of the clipped gradient.
    #[inline(always)]
    pub(super) fn apply_plain(
        &self,
        scale: f32,
        params: &mut [f32],
        grad: &[f32],
        slots: &mut [&mut [f32]],
    ) -> Result<(), Error> {
        match (self.rule, slots) {
            (Rule::Sgd { learning_rate, weight_decay }, []) => {
                kernels::sgd(params, grad, scale, learning_rate, weight_decay);
            }
            (Rule::Momentum { rates, nesterov: false }, [buffer]) => {
                kernels::momentum::<false>(params, grad, buffer, scale, rates);
            }
            (Rule::Momentum { rates, nesterov: true }, [buffer]) => {
                kernels::momentum::<true>(params, grad, buffer, scale, rates);
            }
            (Rule::Adagrad(rates), [sum]) => kernels::adagrad(params, grad, sum, scale, rates),
            (Rule::Adam(rates), [mean, square]) => kernels::adam(params, grad, mean, square, scale, rates),
            (Rule::Lamb { rates, learning_rate, trust }, [mean, square]) => {
                let learning_rate = (learning_rate * trust) as f32;
                kernels::lamb(params, grad, [mean, square], scale, learning_rate, rates);
            }
            (Rule::RmsProp { rates, has_momentum: false, centered: false }, [square]) => {
                kernels::rmsprop::<false, false>(params, grad, [square, &mut [], &mut []], scale, rates);
            }
            (Rule::RmsProp { rates, has_momentum: false, centered: true }, [square, mean]) => {
                kernels::rmsprop::<false, true>(params, grad, [square, &mut [], mean], scale, rates);
            }
            (Rule::RmsProp { rates, has_momentum: true, centered: false }, [square, buffer]) => {
                kernels::rmsprop::<true, false>(params, grad, [square, buffer, &mut []], scale, rates);
            }
            (Rule::RmsProp { rates, has_momentum: true, centered: true }, [square, buffer, mean]) => {
                kernels::rmsprop::<true, true>(params, grad, [square, buffer, mean], scale, rates);
            }
            (Rule::Adadelta(rates), [square, delta]) => kernels::adadelta(params, grad, square, delta, scale, rates),
            (Rule::Ftrl { rates, is_root: true }, [accum, linear]) => {
                kernels::ftrl::<true>(params, grad, accum, linear, scale, rates);
            }
            (Rule::Ftrl { rates, is_root: false }, [accum, linear]) => {
                kernels::ftrl::<false>(params, grad, accum, linear, scale, rates);
            }
            (Rule::FtrlRests, [_, _]) => {}
            (_, slots) => {
                let expected = "the slots of the optimizer".to_owned();
                return Err(Error::State { what: "number of slots", expected, found: slots.len().to_string() });
            }
        }
        Ok(())
    }
}

/// The loops of [`Update::apply`].
struct Apply<'a, 'b> {
    update: &'a Update,
    scale: f32,
    params: &'a mut [f32],
    grad: &'a [f32],
    slots: &'a mut [&'b mut [f32]],
}

impl Loops for Apply<'_, '_> {
    type Done = Result<(), Error>;

    #[inline(always)]
    fn run(self) -> Result<(), Error> {
        self.update.apply_plain(self.scale, self.params, self.grad, self.slots)
    }
}

fn not_lamb(slots: usize) -> Error {
    let expected = "the two of LAMB".to_owned();
    Error::State { what: "number of slots", expected, found: slots.to_string() }
}

fn check<'a>(expected: usize, grad: &[f32], mut slots: impl Iterator<Item = &'a [f32]>) -> Result<(), Error> {
    let length = |what, found| Err(Error::Length { what, expected, found });
    if grad.len() != expected {
        return length("gradient", grad.len());
    }
    match slots.find(|slot| slot.len() != expected) {
        Some(slot) => length("slot", slot.len()),
        None => Ok(()),
    }
}
