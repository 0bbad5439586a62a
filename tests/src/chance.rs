//! Random numbers from a seed that is printed, so that a schedule can be had again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>: small, and the same everywhere.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// From the variable of the environment, or from a seed that nobody chose; says which.
    #[expect(clippy::print_stderr, reason = "who sees a failure needs the seed")]
    pub fn from_environment(variable: &str) -> Self {
        let given = std::env::var(variable).ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        eprintln!("seed {seed}: again with {variable}={seed}");
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len() as u64) as usize)
    }

    /// A time below `limit`.
    pub fn time(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64))
    }
}
