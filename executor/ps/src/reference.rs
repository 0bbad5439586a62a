//! Linear regression in plain Rust: a trainer whose result can be computed twice, for tests and examples.
//!
//! Rows are made from their index, so every process has the same data without reading any. The model is
//! y = w·x + b with the mean squared error, and the data fits it exactly.

use crate::error::Error;
use crate::layout::Layout;

/// A xorshift64* generator: the same numbers everywhere, from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform below `bound` (at least 1); the tiny bias does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next_u64() >> 16) % bound.max(1)
    }

    /// Uniform in -1..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A regression with `features` weights and a bias.
#[derive(Debug, Clone)]
pub struct Regression {
    features: usize,
    truth: Vec<f32>,
}

impl Regression {
    /// The true weights are drawn from `seed`.
    pub fn new(features: usize, seed: u64) -> Regression {
        let mut random = Random::new(seed);
        Regression { features, truth: (0..=features).map(|_| random.uniform()).collect() }
    }

    /// Variables `bias` (a scalar) and `weight` (of `features` elements), in this order; one buffer `seen` of one element.
    pub fn layout(&self) -> Result<Layout, Error> {
        let weight = ("weight".to_owned(), vec![self.features as i64]);
        Layout::new([weight, ("bias".to_owned(), vec![])], [("seen".to_owned(), vec![1])])
    }

    /// Row `index`: `features` inputs, and the target.
    pub fn row(&self, index: u64) -> (Vec<f32>, f32) {
        let mut random = Random::new(index + 0x5eed);
        let inputs: Vec<f32> = (0..self.features).map(|_| random.uniform()).collect();
        let target = self.predict(&self.truth, &inputs);
        (inputs, target)
    }

    fn predict(&self, params: &[f32], inputs: &[f32]) -> f32 {
        params.iter().zip(std::iter::once(&1.0).chain(inputs)).map(|(p, x)| p * x).sum()
    }

    /// Mean loss and mean gradient over `rows`; `params` and the gradient are flat: bias, then weights.
    pub fn gradient(&self, params: &[f32], rows: impl Iterator<Item = u64>) -> (f64, Vec<f32>) {
        let mut sums = vec![0.0f64; self.features + 1];
        let (mut loss, mut count) = (0.0f64, 0u64);
        for row in rows {
            let (inputs, target) = self.row(row);
            let error = f64::from(self.predict(params, &inputs) - target);
            loss += error * error;
            count += 1;
            for (sum, input) in sums.iter_mut().zip(std::iter::once(&1.0).chain(&inputs)) {
                *sum += 2.0 * error * f64::from(*input);
            }
        }
        let mean = 1.0 / count.max(1) as f64;
        (loss * mean, sums.into_iter().map(|sum| (sum * mean) as f32).collect())
    }

    /// Largest difference between `params` and the true weights.
    pub fn distance(&self, params: &[f32]) -> f32 {
        params.iter().zip(&self.truth).map(|(p, t)| (p - t).abs()).fold(0.0, f32::max)
    }
}
