//! Optimizers for variables that live on a GPU, when there is one trainer and no ps: the same formulas as
//! `tfos_ps::Optimizer`, as libtorch operations, so that nothing leaves the device.

use tch::{Kind, Tensor, no_grad};
use tfos_ps::{Layout, Optimizer, Scheduled};

use crate::Error;

/// Optimizer and its slots on the device.
pub(super) struct DeviceOptimizer {
    optimizer: Scheduled,
    /// By slot, then by variable.
    slots: Vec<Vec<Tensor>>,
    optimizer_step: u64,
}

impl DeviceOptimizer {
    /// `saved` has every slot as a flat vector, and the updates that they have seen.
    pub(super) fn new(
        optimizer: Scheduled,
        variables: &[Tensor],
        layout: &Layout,
        saved: Option<(&[Vec<f32>], u64)>,
    ) -> Result<Self, Error> {
        let mut slots = vec![];
        for (index, name) in optimizer.slots().iter().enumerate() {
            let saved = saved.and_then(|(slots, _)| slots.get(index));
            let fill = optimizer.rule.initial_value(name);
            let mut tensors = vec![];
            for (v, variable) in layout.variables.iter().zip(variables) {
                let tensor = match saved.and_then(|s| s.get(v.offset..v.offset + v.len())) {
                    Some(values) => {
                        Tensor::f_from_slice(values)?.f_reshape(variable.size())?.f_to_device(variable.device())?
                    }
                    None => variable.f_zeros_like()?.f_fill_(f64::from(fill))?,
                };
                tensors.push(tensor.f_detach()?);
            }
            slots.push(tensors);
        }
        Ok(Self { optimizer, slots, optimizer_step: saved.map_or(0, |(_, updates)| updates) })
    }

    pub(super) fn optimizer_step(&self) -> u64 {
        self.optimizer_step
    }

    /// Every slot as a flat vector on the CPU.
    pub(super) fn slots(&self) -> Result<Vec<(String, Vec<f32>)>, Error> {
        let mut all = vec![];
        for (name, tensors) in self.optimizer.slots().iter().zip(&self.slots) {
            let mut flat = vec![];
            for tensor in tensors {
                flat.extend(Vec::<f32>::try_from(tensor.f_to_device(tch::Device::Cpu)?.f_flatten(0, -1)?)?);
            }
            all.push(((*name).to_owned(), flat));
        }
        Ok(all)
    }

    /// One update of every variable, from global step `step` to the next.
    pub(super) fn apply(&mut self, step: u64, variables: &mut [Tensor], gradients: &[Tensor]) -> Result<(), Error> {
        self.optimizer_step += 1;
        let rule = self.optimizer.at(step);
        let t = self.optimizer_step as f64;
        no_grad(|| {
            let clipped = match self.optimizer.clip_norm {
                Some(max_norm) => clipped(gradients, max_norm)?,
                None => vec![],
            };
            let gradients = if clipped.is_empty() { gradients } else { &clipped };
            for (index, (variable, gradient)) in variables.iter_mut().zip(gradients).enumerate() {
                let mut slots: Vec<&mut Tensor> = self.slots.iter_mut().filter_map(|s| s.get_mut(index)).collect();
                update(&rule, t, variable, gradient, &mut slots)?;
            }
            Ok(())
        })
    }
}

/// PyTorch's `clip_grad_norm_`, without bringing the norm to the CPU.
fn clipped(gradients: &[Tensor], max_norm: f64) -> Result<Vec<Tensor>, Error> {
    let square_sum = |g: &Tensor| -> Result<Tensor, Error> { Ok(g.f_square()?.f_sum(Kind::Double)?) };
    let squares = gradients.iter().map(square_sum).collect::<Result<Vec<_>, _>>()?;
    if squares.is_empty() {
        return Ok(vec![]);
    }
    let norm = Tensor::f_stack(&squares, 0)?.f_sum(Kind::Double)?.f_sqrt()?;
    let factor = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max_norm)?.f_clamp_max(1.0)?;
    let factor = factor.f_to_kind(Kind::Float)?;
    gradients.iter().map(|g| Ok(g.f_mul(&factor)?)).collect()
}

fn decayed(variable: &Tensor, gradient: &Tensor, weight_decay: f64) -> Result<Tensor, Error> {
    if weight_decay == 0.0 {
        return Ok(gradient.shallow_clone());
    }
    Ok(gradient.f_add(&variable.f_mul_scalar(weight_decay)?)?)
}

fn update(rule: &Optimizer, t: f64, p: &mut Tensor, g: &Tensor, slots: &mut [&mut Tensor]) -> Result<(), Error> {
    match (*rule, slots) {
        (Optimizer::Sgd { learning_rate, weight_decay, .. }, []) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = p.f_sub_(&g.f_mul_scalar(learning_rate)?)?;
        }
        (Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay }, [m, ..]) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = m.f_mul_scalar_(momentum)?.f_add_(&g)?;
            let d = if nesterov { g.f_add(&m.f_mul_scalar(momentum)?)? } else { m.shallow_clone() };
            let _ = p.f_sub_(&d.f_mul_scalar(learning_rate)?)?;
        }
        (Optimizer::Adagrad { learning_rate, eps, weight_decay, lr_decay, .. }, [s, ..]) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = s.f_add_(&g.f_square()?)?;
            let d = g.f_div(&s.f_sqrt()?.f_add_scalar(eps)?)?;
            let _ = p.f_sub_(&d.f_mul_scalar(learning_rate / (1.0 + (t - 1.0) * lr_decay))?)?;
        }
        (Optimizer::Adam { learning_rate, beta1, beta2, eps, weight_decay }, [m, v, ..]) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = m.f_mul_scalar_(beta1)?.f_add_(&g.f_mul_scalar(1.0 - beta1)?)?;
            let _ = v.f_mul_scalar_(beta2)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - beta2)?)?;
            let denominator = v.f_sqrt()?.f_div_scalar((1.0 - beta2.powf(t)).sqrt())?.f_add_scalar(eps)?;
            let d = m.f_div(&denominator)?;
            let _ = p.f_sub_(&d.f_mul_scalar(learning_rate / (1.0 - beta1.powf(t)))?)?;
        }
        (Optimizer::AdamW { learning_rate, beta1, beta2, eps, weight_decay }, [m, v, ..]) => {
            let _ = p.f_mul_scalar_(1.0 - learning_rate * weight_decay)?;
            let rule = Optimizer::Adam { learning_rate, beta1, beta2, eps, weight_decay: 0.0 };
            update(&rule, t, p, g, &mut [&mut **m, &mut **v])?;
        }
        (Optimizer::Lamb { learning_rate, beta1, beta2, eps, weight_decay }, [m, v, ..]) => {
            let _ = m.f_mul_scalar_(beta1)?.f_add_(&g.f_mul_scalar(1.0 - beta1)?)?;
            let _ = v.f_mul_scalar_(beta2)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - beta2)?)?;
            let denominator = v.f_sqrt()?.f_div_scalar((1.0 - beta2.powf(t)).sqrt())?.f_add_scalar(eps)?;
            let direction = m.f_div(&denominator)?.f_div_scalar(1.0 - beta1.powf(t))?;
            let direction = direction.f_add(&p.f_mul_scalar(weight_decay)?)?;
            let norm = |x: &Tensor| -> Result<Tensor, Error> { Ok(x.f_square()?.f_sum(Kind::Double)?.f_sqrt()?) };
            let (weight, update) = (norm(p)?, norm(&direction)?);
            let ratio = weight.f_div(&update)?;
            // 1 where one of them is 0.
            let has_both = weight.f_mul(&update)?.f_gt(0.0)?;
            let ratio = ratio.f_where_self(&has_both, &ratio.f_ones_like()?)?.f_to_kind(Kind::Float)?;
            let _ = p.f_sub_(&direction.f_mul(&ratio)?.f_mul_scalar(learning_rate)?)?;
        }
        (Optimizer::RmsProp { learning_rate, alpha, eps, weight_decay, momentum, centered }, [s, rest @ ..]) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = s.f_mul_scalar_(alpha)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - alpha)?)?;
            let mut variance = s.shallow_clone();
            if centered && let Some(a) = rest.last_mut() {
                let _ = a.f_mul_scalar_(alpha)?.f_add_(&g.f_mul_scalar(1.0 - alpha)?)?;
                variance = s.f_sub(&a.f_square()?)?.f_clamp_min(0.0)?;
            }
            let mut d = g.f_div(&variance.f_sqrt()?.f_add_scalar(eps)?)?;
            if momentum != 0.0
                && let Some(m) = rest.first_mut()
            {
                let _ = m.f_mul_scalar_(momentum)?.f_add_(&d)?;
                d = m.shallow_clone();
            }
            let _ = p.f_sub_(&d.f_mul_scalar(learning_rate)?)?;
        }
        (Optimizer::Adadelta { learning_rate, rho, eps, weight_decay }, [s, u, ..]) => {
            let g = decayed(p, g, weight_decay)?;
            let _ = s.f_mul_scalar_(rho)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - rho)?)?;
            let d = u.f_add_scalar(eps)?.f_sqrt()?.f_div(&s.f_add_scalar(eps)?.f_sqrt()?)?.f_mul(&g)?;
            let _ = u.f_mul_scalar_(rho)?.f_add_(&d.f_square()?.f_mul_scalar(1.0 - rho)?)?;
            let _ = p.f_sub_(&d.f_mul_scalar(learning_rate)?)?;
        }
        // Its formula divides by the rate.
        (Optimizer::Ftrl { learning_rate: 0.0, .. }, _) => {}
        (Optimizer::Ftrl { learning_rate, learning_rate_power, l1, l2, .. }, [n, z, ..]) => {
            let old = n.f_pow_tensor_scalar(-learning_rate_power)?;
            let _ = n.f_add_(&g.f_square()?)?;
            let new = n.f_pow_tensor_scalar(-learning_rate_power)?;
            let sigma = new.f_sub(&old)?.f_div_scalar(learning_rate)?;
            let _ = z.f_add_(&g.f_sub(&sigma.f_mul(p)?)?)?;
            let quadratic = new.f_div_scalar(learning_rate)?.f_add_scalar(2.0 * l2)?;
            p.f_copy_(&z.f_clamp(-l1, l1)?.f_sub(z)?.f_div(&quadratic)?)?;
        }
        // A rule without the slots that it names does not exist: they are made from its own list.
        (
            Optimizer::Adagrad { .. }
            | Optimizer::Adam { .. }
            | Optimizer::AdamW { .. }
            | Optimizer::Lamb { .. }
            | Optimizer::RmsProp { .. }
            | Optimizer::Adadelta { .. }
            | Optimizer::Ftrl { .. },
            _,
        ) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tfos_ps::{LocalTrainer, Schedule};

    #[test]
    fn device_and_cpu_rules_give_the_same_numbers() {
        let sgd = |momentum, nesterov| Optimizer::Sgd { learning_rate: 0.05, momentum, nesterov, weight_decay: 0.01 };
        let rmsprop = |momentum, centered| Optimizer::RmsProp {
            learning_rate: 0.01,
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
            momentum,
            centered,
        };
        let ftrl = |learning_rate_power, l1, l2| Optimizer::Ftrl {
            learning_rate: 0.05,
            learning_rate_power,
            initial_accumulator: 0.1,
            l1,
            l2,
        };
        let rules = [
            sgd(0.0, false),
            sgd(0.9, false),
            sgd(0.9, true),
            Optimizer::Adagrad {
                learning_rate: 0.1,
                initial_accumulator: 0.1,
                eps: 1e-10,
                weight_decay: 0.0,
                lr_decay: 0.01,
            },
            Optimizer::Adam { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            Optimizer::adamw(0.01),
            Optimizer::lamb(0.01),
            Optimizer::Lamb { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 },
            rmsprop(0.0, false),
            rmsprop(0.0, true),
            rmsprop(0.9, false),
            rmsprop(0.9, true),
            Optimizer::adadelta(1.0),
            ftrl(-0.5, 0.0, 0.0),
            ftrl(-0.7, 0.1, 0.2),
        ];
        // Ends before the last step, at rate 0.
        let schedule = Schedule::cosine(12).with_warmup(4, 0.1);
        let layout = Layout::new([("w".to_owned(), vec![2, 3])], []).unwrap();
        // The norms of these gradients are between 2 and 5.
        let clipped = rules.map(|rule| rule.with_schedule(schedule).with_clip_norm(3.0));
        for rule in rules.map(|rule| rule.with_schedule(schedule)).into_iter().chain(clipped) {
            let mut variables = [Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3])];
            let mut on_device = DeviceOptimizer::new(rule, &variables, &layout, None).unwrap();
            let mut flat: Vec<f32> = (0..6).map(|i| i as f32).collect();
            let mut local = LocalTrainer::new(layout.clone(), rule, 0).unwrap();
            for step in 0..20 {
                let g: Vec<f32> = (0..6).map(|i| ((i * 7 + step) % 5) as f32 - 2.0).collect();
                on_device.apply(step, &mut variables, &[Tensor::from_slice(&g).reshape([2, 3])]).unwrap();
                local.apply(&mut [&mut flat], &[&g]).unwrap();
            }
            let device: Vec<f32> = Vec::try_from(variables[0].flatten(0, -1)).unwrap();
            for (a, b) in device.iter().zip(&flat) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{rule:?}: {a} and {b}");
            }
        }
    }
}
