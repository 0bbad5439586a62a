//! The kernels against the formulas written out in `f64`, one parameter at a time.

use super::*;

const STEPS: u64 = 100;
const SCALE: f32 = 0.5;

/// Gradients that change sign and size, exact in `f32`.
fn gradient(step: u64, i: usize) -> f32 {
    (((step as usize * 37 + i * 101) % 256) as f32 - 120.0) / 64.0
}

/// Runs 100 updates over a length that is no multiple of a vector, and compares with `reference(p, g, t, state)`.
fn check(optimizer: Optimizer, reference: impl Fn(f64, f64, f64, &mut [f64; 3]) -> f64) {
    let n = 37;
    let mut params: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / 64.0).collect();
    let mut exact: Vec<f64> = params.iter().map(|&p| f64::from(p)).collect();
    let mut slots = optimizer.initial_slots(n);
    let mut state = vec![[0.0f64; 3]; n];
    if let Optimizer::Adagrad { initial_accumulator, .. } | Optimizer::Ftrl { initial_accumulator, .. } = optimizer {
        state = vec![[initial_accumulator, 0.0, 0.0]; n];
    }
    for step in 1..=STEPS {
        let grad: Vec<f32> = (0..n).map(|i| gradient(step, i)).collect();
        let mut views: Vec<&mut [f32]> = slots.iter_mut().map(Vec::as_mut_slice).collect();
        optimizer.apply(step, SCALE, &mut params, &grad, &mut views).unwrap();
        for i in 0..n {
            exact[i] = reference(exact[i], f64::from(SCALE * grad[i]), step as f64, &mut state[i]);
        }
    }
    for (i, (&found, &expected)) in params.iter().zip(&exact).enumerate() {
        let error = (f64::from(found) - expected).abs() / expected.abs().max(1.0);
        assert!(error <= 1e-6, "{optimizer:?}: parameter {i} is {found}, expected {expected}, off by {error:e}");
    }
}

#[test]
fn sgd_is_pytorchs() {
    let sgd =
        |momentum, nesterov, weight_decay| Optimizer::Sgd { learning_rate: 0.01, momentum, nesterov, weight_decay };
    check(sgd(0.0, false, 0.0), |p, g, _, _| p - 0.01 * g);
    check(sgd(0.0, false, 0.01), |p, g, _, _| p - 0.01 * (g + 0.01 * p));
    check(sgd(0.9, false, 0.0), |p, g, t, s| {
        s[0] = if t == 1.0 { g } else { 0.9 * s[0] + g };
        p - 0.01 * s[0]
    });
    check(sgd(0.9, true, 0.01), |p, g, t, s| {
        let g = g + 0.01 * p;
        s[0] = if t == 1.0 { g } else { 0.9 * s[0] + g };
        p - 0.01 * (g + 0.9 * s[0])
    });
}

#[test]
fn adagrad_is_pytorchs() {
    for (initial_accumulator, weight_decay, lr_decay) in [(0.0, 0.0, 0.0), (0.1, 0.01, 0.02)] {
        let optimizer =
            Optimizer::Adagrad { learning_rate: 0.05, initial_accumulator, eps: 1e-10, weight_decay, lr_decay };
        check(optimizer, |p, g, t, s| {
            let g = g + weight_decay * p;
            s[0] += g * g;
            p - 0.05 / (1.0 + (t - 1.0) * lr_decay) * g / (s[0].sqrt() + 1e-10)
        });
    }
}

#[test]
fn adam_is_pytorchs() {
    for weight_decay in [0.0, 0.01] {
        let optimizer = Optimizer::Adam { learning_rate: 0.001, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
        check(optimizer, |p, g, t, s| {
            let g = g + weight_decay * p;
            s[0] = 0.9 * s[0] + 0.1 * g;
            s[1] = 0.999 * s[1] + 0.001 * g * g;
            let corrected = s[1].sqrt() / (1.0 - 0.999f64.powf(t)).sqrt() + 1e-8;
            p - 0.001 / (1.0 - 0.9f64.powf(t)) * s[0] / corrected
        });
    }
}

#[test]
fn adamw_is_pytorchs() {
    for weight_decay in [0.0, 0.1] {
        let optimizer = Optimizer::AdamW { learning_rate: 0.001, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay };
        check(optimizer, |p, g, t, s| {
            s[0] = 0.9 * s[0] + 0.1 * g;
            s[1] = 0.99 * s[1] + 0.01 * g * g;
            let corrected = s[1].sqrt() / (1.0 - 0.99f64.powf(t)).sqrt() + 1e-8;
            // PyTorch rounds this factor to f32, as we do: over many steps that shows.
            let keep = f64::from((1.0 - 0.001 * weight_decay) as f32);
            keep * p - 0.001 / (1.0 - 0.9f64.powf(t)) * s[0] / corrected
        });
    }
}

/// Not by `check`, as the norms are those of the whole variable.
#[test]
fn lamb_is_that_of_its_paper() {
    for weight_decay in [0.0, 0.1] {
        let optimizer = Optimizer::Lamb { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay };
        let n = 37;
        let mut params: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / 64.0).collect();
        let mut exact: Vec<f64> = params.iter().map(|&p| f64::from(p)).collect();
        let (mut m, mut v) = (vec![0.0f64; n], vec![0.0f64; n]);
        let mut slots = optimizer.initial_slots(n);
        for step in 1..=STEPS {
            let t = step as i32;
            let grad: Vec<f32> = (0..n).map(|i| gradient(step, i)).collect();
            let mut views: Vec<&mut [f32]> = slots.iter_mut().map(Vec::as_mut_slice).collect();
            optimizer.apply(step, SCALE, &mut params, &grad, &mut views).unwrap();
            let mut direction = vec![0.0; n];
            for i in 0..n {
                let g = f64::from(SCALE * grad[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let corrected = (v[i] / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-6;
                direction[i] = m[i] / (1.0 - 0.9f64.powi(t)) / corrected + weight_decay * exact[i];
            }
            let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let ratio = norm(&exact) / norm(&direction);
            exact.iter_mut().zip(direction).for_each(|(p, u)| *p -= 0.01 * ratio * u);
        }
        for (&found, &expected) in params.iter().zip(&exact) {
            let error = (f64::from(found) - expected).abs() / expected.abs().max(1.0);
            assert!(error <= 1e-6, "{found}, expected {expected}, off by {error:e}");
        }
    }
}

#[test]
fn where_lamb_has_no_norms_their_ratio_is_1() {
    let lamb = |weight_decay| match Optimizer::lamb(0.5) {
        Optimizer::Lamb { learning_rate, beta1, beta2, eps, .. } => {
            Optimizer::Lamb { learning_rate, beta1, beta2, eps, weight_decay }
        }
        other => other,
    };
    let step = |rule: Optimizer, start: f32, grad: f32| {
        let (mut m, mut v, mut p) = ([0.0], [0.0], [start]);
        rule.apply(1, 1.0, &mut p, &[grad], &mut [&mut m, &mut v]).unwrap();
        p[0]
    };
    // The direction is 1 (and the rounding of eps): with no weights it is taken at the plain rate.
    assert!((step(lamb(0.0), 0.0, 2.0) + 0.5).abs() < 1e-5);
    // No direction: nothing moves, and nothing is divided by 0.
    assert_eq!(step(lamb(0.0), 3.0, 0.0), 3.0);
    // Only decay: the ratio takes its size out again.
    assert!((step(lamb(0.01), 3.0, 0.0) - 1.5).abs() < 1e-6);
}

#[test]
fn rmsprop_is_pytorchs() {
    for (momentum, centered, weight_decay) in
        [(0.0, false, 0.0), (0.0, true, 0.01), (0.9, false, 0.01), (0.9, true, 0.0)]
    {
        let optimizer =
            Optimizer::RmsProp { learning_rate: 0.001, alpha: 0.99, eps: 1e-8, weight_decay, momentum, centered };
        check(optimizer, |p, g, _, s| {
            let g = g + weight_decay * p;
            s[0] = 0.99 * s[0] + 0.01 * g * g;
            s[2] = 0.99 * s[2] + 0.01 * g;
            let variance = if centered { s[0] - s[2] * s[2] } else { s[0] };
            s[1] = momentum * s[1] + g / (variance.sqrt() + 1e-8);
            p - 0.001 * s[1]
        });
    }
}

#[test]
fn a_variance_that_rounding_makes_negative_is_zero() {
    let rmsprop: Optimizer = serde_json::from_str(r#"{"name": "rmsprop", "centered": true}"#).unwrap();
    let (mut square, mut mean, mut params) = ([0.99], [1.0], [1.0]);
    rmsprop.apply(1, 1.0, &mut params, &[1.0], &mut [&mut square, &mut mean]).unwrap();
    assert!(square[0] < mean[0] * mean[0] && params[0].is_finite());
}

#[test]
fn adadelta_is_pytorchs() {
    for weight_decay in [0.0, 0.01] {
        let optimizer = Optimizer::Adadelta { learning_rate: 1.0, rho: 0.9, eps: 1e-6, weight_decay };
        check(optimizer, |p, g, _, s| {
            let g = g + weight_decay * p;
            s[0] = 0.9 * s[0] + 0.1 * g * g;
            let d = (s[1] + 1e-6).sqrt() / (s[0] + 1e-6).sqrt() * g;
            s[1] = 0.9 * s[1] + 0.1 * d * d;
            p - d
        });
    }
}

#[test]
fn ftrl_is_tensorflows() {
    for (learning_rate_power, l1, l2) in [(-0.5, 0.0, 0.0), (-0.5, 0.1, 0.2), (-0.7, 0.01, 0.0)] {
        let optimizer = Optimizer::Ftrl { learning_rate: 0.05, learning_rate_power, initial_accumulator: 0.1, l1, l2 };
        check(optimizer, |p, g, _, s| {
            let (old, new) = (s[0].powf(-learning_rate_power), (s[0] + g * g).powf(-learning_rate_power));
            s[0] += g * g;
            s[1] += g - (new - old) / 0.05 * p;
            (s[1].clamp(-l1, l1) - s[1]) / (new / 0.05 + 2.0 * l2)
        });
    }
}

#[test]
fn at_rate_0_no_rule_moves_a_parameter() {
    let rules = ["sgd", "adagrad", "adam", "adamw", "lamb", "rmsprop", "adadelta", "ftrl"];
    for name in rules {
        let rule: Optimizer = serde_json::from_str(&format!(r#"{{"name": "{name}", "learning_rate": 0.0}}"#)).unwrap();
        let mut slots = rule.initial_slots(1);
        let mut views: Vec<&mut [f32]> = slots.iter_mut().map(Vec::as_mut_slice).collect();
        let mut params = [0.75];
        rule.apply(1, 1.0, &mut params, &[2.0], &mut views).unwrap();
        assert_eq!(params, [0.75], "{name}");
        assert!(slots.iter().flatten().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn slots_have_pytorchs_names() {
    let sgd = |momentum| Optimizer::Sgd { learning_rate: 0.1, momentum, nesterov: false, weight_decay: 0.0 };
    assert!(sgd(0.0).slots().is_empty());
    assert_eq!(sgd(0.9).slots(), ["momentum_buffer"]);
    let adam: Optimizer = serde_json::from_str(r#"{"name": "adam", "learning_rate": 0.01}"#).unwrap();
    assert_eq!(adam.slots(), ["exp_avg", "exp_avg_sq"]);
    assert!(matches!(adam, Optimizer::Adam { beta2: 0.999, eps: 1e-8, .. }));
    let adagrad: Optimizer = serde_json::from_str(r#"{"name": "adagrad", "initial_accumulator": 0.5}"#).unwrap();
    assert_eq!(adagrad.slots(), ["sum"]);
    assert_eq!(adagrad.initial_slots(2), [[0.5, 0.5]]);
    let rmsprop = |options| serde_json::from_str::<Optimizer>(&format!(r#"{{"name": "rmsprop"{options}}}"#)).unwrap();
    assert_eq!(rmsprop("").slots(), ["square_avg"]);
    assert_eq!(rmsprop(r#", "centered": true"#).slots(), ["square_avg", "grad_avg"]);
    let both = rmsprop(r#", "centered": true, "momentum": 0.5"#);
    assert_eq!(both.slots(), ["square_avg", "momentum_buffer", "grad_avg"]);
    assert!(matches!(rmsprop(""), Optimizer::RmsProp { learning_rate: 0.01, alpha: 0.99, eps: 1e-8, .. }));
    let ftrl: Optimizer = serde_json::from_str(r#"{"name": "ftrl"}"#).unwrap();
    assert_eq!((ftrl, ftrl.slots()), (Optimizer::ftrl(1e-3), ["accum", "linear"].as_slice()));
    assert_eq!(ftrl.initial_slots(1), [[0.1], [0.0]]);
    let defaults =
        [("adamw", Optimizer::adamw(1e-3)), ("adadelta", Optimizer::adadelta(1.0)), ("lamb", Optimizer::lamb(1e-3))];
    for (name, defaults) in defaults {
        assert_eq!(serde_json::from_str::<Optimizer>(&format!(r#"{{"name": "{name}"}}"#)).unwrap(), defaults);
    }
    assert_eq!(Optimizer::adadelta(1.0).slots(), ["square_avg", "acc_delta"]);
    assert!(serde_json::from_str::<Optimizer>(r#"{"name": "adam", "betas": [0.9, 0.999]}"#).is_err());
}

#[test]
fn wrong_lengths_are_errors() {
    let adam: Optimizer = serde_json::from_str(r#"{"name": "adam"}"#).unwrap();
    let (mut m, mut v) = ([0.0; 2], [0.0; 3]);
    let short = adam.apply(1, 1.0, &mut [0.0; 2], &[0.0; 2], &mut [&mut m, &mut v]);
    assert!(matches!(short, Err(Error::Length { what: "slot", expected: 2, found: 3 })));
    assert!(matches!(adam.apply(1, 1.0, &mut [0.0; 2], &[0.0; 3], &mut []), Err(Error::Length { .. })));
    assert!(matches!(adam.apply(1, 1.0, &mut [0.0; 2], &[0.0; 2], &mut []), Err(Error::State { .. })));
}
