//! The inner loops: one pass over equally long slices, plain enough for the compiler to vectorise; always inlined, for
//! `wide`.
//!
//! The callers have checked that all lengths are equal; the re-slicing to `n` tells the compiler so, which then
//! leaves out the bounds checks. A NaN in the gradient is not looked for here: it costs a pass of its own, and the
//! worker sees it in its loss.

use super::wide::{Loops, wide};

#[derive(Debug, Clone, Copy)]
pub(super) struct Momentum {
    pub(super) learning_rate: f32,
    pub(super) momentum: f32,
    pub(super) weight_decay: f32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Adagrad {
    pub(super) learning_rate: f32,
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
}

/// Also LAMB's, whose step size is 1 / (1 - beta1ᵗ) and whose rate comes with the update.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adam {
    /// What stays of a parameter before its update: 1 - learning_rate * weight_decay for AdamW, 1 for Adam.
    pub(super) keep: f32,
    pub(super) step_size: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) inverse_root: f32,
    pub(super) eps: f32,
    /// Added to the gradient, by LAMB to the direction; 0 for AdamW.
    pub(super) weight_decay: f32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RmsProp {
    pub(super) learning_rate: f32,
    pub(super) alpha: f32,
    pub(super) one_minus_alpha: f32,
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
    pub(super) momentum: f32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Adadelta {
    pub(super) learning_rate: f32,
    pub(super) rho: f32,
    pub(super) one_minus_rho: f32,
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ftrl {
    pub(super) learning_rate: f32,
    /// -learning_rate_power.
    pub(super) power: f32,
    pub(super) l1: f32,
    pub(super) two_l2: f32,
}

#[inline(always)]
pub(super) fn sgd(params: &mut [f32], grad: &[f32], scale: f32, learning_rate: f32, weight_decay: f32) {
    for (p, &g) in params.iter_mut().zip(grad) {
        *p -= learning_rate * (scale * g + weight_decay * *p);
    }
}

#[inline(always)]
pub(super) fn momentum<const NESTEROV: bool>(
    params: &mut [f32],
    grad: &[f32],
    buffer: &mut [f32],
    scale: f32,
    rates: Momentum,
) {
    let n = params.len();
    let (grad, buffer) = (&grad[..n], &mut buffer[..n]);
    for i in 0..n {
        let g = scale * grad[i] + rates.weight_decay * params[i];
        // PyTorch begins with m = g, which is what a zero buffer gives.
        let m = rates.momentum * buffer[i] + g;
        buffer[i] = m;
        params[i] -= rates.learning_rate * if NESTEROV { g + rates.momentum * m } else { m };
    }
}

#[inline(always)]
pub(super) fn adagrad(params: &mut [f32], grad: &[f32], sum: &mut [f32], scale: f32, rates: Adagrad) {
    let n = params.len();
    let (grad, sum) = (&grad[..n], &mut sum[..n]);
    for i in 0..n {
        let g = scale * grad[i] + rates.weight_decay * params[i];
        let s = sum[i] + g * g;
        sum[i] = s;
        params[i] -= rates.learning_rate * (g / (s.sqrt() + rates.eps));
    }
}

#[inline(always)]
pub(super) fn adam(params: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], scale: f32, rates: Adam) {
    let n = params.len();
    let (grad, mean, square) = (&grad[..n], &mut mean[..n], &mut square[..n]);
    for i in 0..n {
        let g = scale * grad[i] + rates.weight_decay * params[i];
        let m = mean[i] + rates.one_minus_beta1 * (g - mean[i]);
        let v = rates.beta2 * square[i] + rates.one_minus_beta2 * (g * g);
        mean[i] = m;
        square[i] = v;
        params[i] = rates.keep * params[i] - rates.step_size * (m / (v.sqrt() * rates.inverse_root + rates.eps));
    }
}

/// New mean, new square and direction of one parameter.
#[inline(always)]
fn lamb_direction(p: f32, g: f32, mean: f32, square: f32, rates: &Adam) -> (f32, f32, f32) {
    let m = mean + rates.one_minus_beta1 * (g - mean);
    let v = rates.beta2 * square + rates.one_minus_beta2 * (g * g);
    let u = rates.step_size * (m / (v.sqrt() * rates.inverse_root + rates.eps)) + rates.weight_decay * p;
    (m, v, u)
}

/// Σ p² and Σ u² in `f64`; nothing changes.
pub(super) fn lamb_norms(
    params: &[f32],
    grad: &[f32],
    mean: &[f32],
    square: &[f32],
    scale: f32,
    rates: Adam,
) -> [f64; 2] {
    const LANES: usize = 8;
    let n = params.len();
    let (grad, mean, square) = (&grad[..n], &mean[..n], &square[..n]);
    let (mut weights, mut updates) = ([0.0f64; LANES], [0.0f64; LANES]);
    for i in 0..n {
        let (_, _, u) = lamb_direction(params[i], scale * grad[i], mean[i], square[i], &rates);
        weights[i % LANES] += f64::from(params[i]) * f64::from(params[i]);
        updates[i % LANES] += f64::from(u) * f64::from(u);
    }
    [weights.iter().sum(), updates.iter().sum()]
}

/// The directions of the parameters, one after the other; nothing changes.
pub(super) fn lamb_directions<'a>(
    params: &'a [f32],
    grad: &'a [f32],
    mean: &'a [f32],
    square: &'a [f32],
    scale: f32,
    rates: Adam,
) -> impl Iterator<Item = f32> + 'a {
    let slots = mean.iter().zip(square);
    params.iter().zip(grad).zip(slots).map(move |((&p, &g), (&m, &s))| lamb_direction(p, scale * g, m, s, &rates).2)
}

#[inline(always)]
pub(super) fn lamb(
    params: &mut [f32],
    grad: &[f32],
    [mean, square]: [&mut [f32]; 2],
    scale: f32,
    learning_rate: f32,
    rates: Adam,
) {
    let n = params.len();
    let (grad, mean, square) = (&grad[..n], &mut mean[..n], &mut square[..n]);
    for i in 0..n {
        let (m, v, u) = lamb_direction(params[i], scale * grad[i], mean[i], square[i], &rates);
        mean[i] = m;
        square[i] = v;
        params[i] -= learning_rate * u;
    }
}

/// `slots` are square average, momentum and mean, the last two empty where there is none.
#[inline(always)]
pub(super) fn rmsprop<const MOMENTUM: bool, const CENTERED: bool>(
    params: &mut [f32],
    grad: &[f32],
    [square, buffer, mean]: [&mut [f32]; 3],
    scale: f32,
    rates: RmsProp,
) {
    let n = params.len();
    let (grad, square) = (&grad[..n], &mut square[..n]);
    let (buffer, mean) = (&mut buffer[..if MOMENTUM { n } else { 0 }], &mut mean[..if CENTERED { n } else { 0 }]);
    for i in 0..n {
        let g = scale * grad[i] + rates.weight_decay * params[i];
        let s = rates.alpha * square[i] + rates.one_minus_alpha * (g * g);
        square[i] = s;
        let mut variance = s;
        if CENTERED {
            let a = mean[i] + rates.one_minus_alpha * (g - mean[i]);
            mean[i] = a;
            variance = (s - a * a).max(0.0);
        }
        let mut d = g / (variance.sqrt() + rates.eps);
        if MOMENTUM {
            d += rates.momentum * buffer[i];
            buffer[i] = d;
        }
        params[i] -= rates.learning_rate * d;
    }
}

#[inline(always)]
pub(super) fn adadelta(
    params: &mut [f32],
    grad: &[f32],
    square: &mut [f32],
    delta: &mut [f32],
    scale: f32,
    rates: Adadelta,
) {
    let n = params.len();
    let (grad, square, delta) = (&grad[..n], &mut square[..n], &mut delta[..n]);
    for i in 0..n {
        let g = scale * grad[i] + rates.weight_decay * params[i];
        let s = rates.rho * square[i] + rates.one_minus_rho * (g * g);
        let d = (delta[i] + rates.eps).sqrt() / (s + rates.eps).sqrt() * g;
        square[i] = s;
        delta[i] = rates.rho * delta[i] + rates.one_minus_rho * (d * d);
        params[i] -= rates.learning_rate * d;
    }
}

/// `ROOT`: the power is 1/2, the only one for which this is fast.
#[inline(always)]
pub(super) fn ftrl<const ROOT: bool>(
    params: &mut [f32],
    grad: &[f32],
    accum: &mut [f32],
    linear: &mut [f32],
    scale: f32,
    rates: Ftrl,
) {
    let n = params.len();
    let (grad, accum, linear) = (&grad[..n], &mut accum[..n], &mut linear[..n]);
    let raised = |x: f32| if ROOT { x.sqrt() } else { x.powf(rates.power) };
    for i in 0..n {
        let g = scale * grad[i];
        let new = accum[i] + g * g;
        let root = raised(new);
        let z = linear[i] + (g - (root - raised(accum[i])) / rates.learning_rate * params[i]);
        accum[i] = new;
        linear[i] = z;
        // `max` and `min`, as `clamp` panics where l1 is NaN.
        let clipped = z.min(rates.l1).max(-rates.l1);
        params[i] = (clipped - z) / (root / rates.learning_rate + rates.two_l2);
    }
}

/// `sum = weight * grad`, or `sum += weight * grad` when not the first.
pub(crate) fn accumulate(sum: &mut [f32], grad: &[f32], weight: f32, first: bool) {
    wide(Accumulate { sum, grad, weight, first });
}

/// Both at once: the same bits, and the sum is written once.
pub(crate) fn accumulate_two(sum: &mut [f32], grads: [&[f32]; 2], weights: [f32; 2]) {
    wide(AccumulateTwo { sum, grads, weights });
}

struct Accumulate<'a> {
    sum: &'a mut [f32],
    grad: &'a [f32],
    weight: f32,
    first: bool,
}

struct AccumulateTwo<'a> {
    sum: &'a mut [f32],
    grads: [&'a [f32]; 2],
    weights: [f32; 2],
}

impl Loops for Accumulate<'_> {
    type Done = ();

    #[inline(always)]
    fn run(self) {
        let Accumulate { sum, grad, weight, first } = self;
        if first {
            for (s, &g) in sum.iter_mut().zip(grad) {
                *s = weight * g;
            }
        } else {
            for (s, &g) in sum.iter_mut().zip(grad) {
                *s += weight * g;
            }
        }
    }
}

impl Loops for AccumulateTwo<'_> {
    type Done = ();

    #[inline(always)]
    fn run(self) {
        let AccumulateTwo { sum, grads: [first, second], weights: [weight, other] } = self;
        for ((s, &a), &b) in sum.iter_mut().zip(first).zip(second) {
            *s = weight * a + other * b;
        }
    }
}
