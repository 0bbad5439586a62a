//! One update: what is the same for all parameters is computed once, then applied to any range of them.

use super::Optimizer;
use super::kernels::{self, Adadelta, Adagrad, Adam, Ftrl, Momentum, RmsProp};
use crate::error::Error;

/// One update, ready to be applied to any range of the parameters, block by block.
#[derive(Debug, Clone, Copy)]
pub struct Update(Rule);

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
        Update(match *self {
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
        })
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
    /// As [`Optimizer::apply`].
    pub fn apply(&self, scale: f32, params: &mut [f32], grad: &[f32], slots: &mut [&mut [f32]]) -> Result<(), Error> {
        let expected = params.len();
        let length = |what, found| Err(Error::Length { what, expected, found });
        if grad.len() != expected {
            return length("gradient", grad.len());
        }
        if let Some(slot) = slots.iter().find(|slot| slot.len() != expected) {
            return length("slot", slot.len());
        }
        match (self.0, slots) {
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
