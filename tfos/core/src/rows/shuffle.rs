//! Orders that a seed fixes: of the partitions of an epoch, and of the rows inside blocks of a partition.
//!
//! - `SHF-1` the order depends on the seed, the epoch and the address alone: not on who reads, nor on how many do.
//!
//! A shuffled row's address is its position in the shuffled order, so "which rows were seen" stays a few ranges. A row
//! moves inside its block only: with blocks of B rows, by B/3 rows on average and by B - 1 at most, while its
//! partition's place among the partitions is uniform. Where rows are sorted in runs much longer than B (by label, by time),
//! more partitions than workers mix them better than larger blocks do.

use std::num::NonZeroU32;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// How rows are shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shuffle {
    /// Another seed gives another order.
    pub seed: u64,
    /// Rows of a block, which a scan holds in memory while it is read.
    pub block_rows: NonZeroU32,
}

/// Keeps the orders of partitions and of rows apart.
const PARTITIONS: u64 = u64::MAX;

impl Shuffle {
    /// The order in which the `count` partitions of an epoch are begun.
    pub fn partitions(&self, epoch: u32, count: u32) -> Vec<u32> {
        self.order(u64::from(epoch), PARTITIONS, count)
    }

    /// Which of the `rows` rows of a block comes first, second, and so on: row numbers within the block.
    pub fn block(&self, epoch: u32, partition: u32, block: u64, rows: u32) -> Vec<u32> {
        self.order(u64::from(epoch) << 32 | u64::from(partition), block, rows)
    }

    /// Fisher and Yates's shuffle, driven by ChaCha8 under a key made of the arguments. Both are fixed here, not left
    /// to a library's `shuffle`: an order has to be the same in the next version of the program.
    fn order(&self, place: u64, block: u64, count: u32) -> Vec<u32> {
        let mut key = [0; 32];
        for (bytes, part) in key.chunks_exact_mut(8).zip([self.seed, place, block, 0x7368_7566_666c_6531]) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        let mut random = ChaCha8Rng::from_seed(key);
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last as usize, below(&mut random, last + 1) as usize);
        }
        order
    }
}

/// A uniform number below `n`: Lemire's multiplication with rejection, <https://arxiv.org/abs/1805.10941>.
fn below(random: &mut ChaCha8Rng, n: u32) -> u32 {
    let rejected = n.wrapping_neg() % n;
    loop {
        let product = u64::from(random.next_u32()) * u64::from(n);
        if product as u32 >= rejected {
            return (product >> 32) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shuffle(seed: u64) -> Shuffle {
        Shuffle { seed, block_rows: NonZeroU32::MIN }
    }

    #[test] // an order that changes between versions would give a resumed job other rows under the same addresses
    fn the_order_is_the_one_that_it_always_was() {
        assert_eq!(shuffle(7).block(1, 2, 3, 8), [1, 2, 6, 0, 3, 7, 5, 4]);
        assert_eq!(shuffle(7).partitions(0, 4).len(), 4);
    }

    #[test] // SHF-1
    fn every_part_of_the_address_and_the_seed_gives_another_order_of_all_rows() {
        let of = |seed, epoch, partition, block| shuffle(seed).block(epoch, partition, block, 100);
        let orders = [of(1, 0, 0, 0), of(2, 0, 0, 0), of(1, 1, 0, 0), of(1, 0, 1, 0), of(1, 0, 0, 1)];
        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..100));
            assert!(orders.iter().skip(i + 1).all(|other| other != order));
        }
        assert_ne!(shuffle(1).partitions(0, 100), shuffle(1).partitions(1, 100));
        assert!(shuffle(1).partitions(0, 0).is_empty());
    }

    #[test] // a third of the block, as the module's text promises; the tolerance is ten standard errors
    fn a_row_moves_by_a_third_of_its_block() {
        let rows = 1000u32;
        let (mut moved, mut firsts) = (0.0, 0.0);
        for block in 0..200 {
            let order = shuffle(3).block(0, 0, block, rows);
            moved += order.iter().zip(0i64..).map(|(row, at)| (i64::from(*row) - at).abs() as f64).sum::<f64>();
            firsts += order.first().map_or(0.0, |row| f64::from(*row));
        }
        let mean = moved / 200.0 / f64::from(rows);
        assert!((mean - 1000.0 / 3.0).abs() < 6.0, "{mean}");
        assert!((firsts / 200.0 - 499.5).abs() < 205.0, "{firsts}");
    }
}
