//! The machine's limit: how fast one thread, and all workers at once, copy memory that no cache of a core holds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::case::WORKERS;

const BYTES: usize = 256 << 20;
const TIME: Duration = Duration::from_millis(600);

/// GB/s of memory touched: a byte copied is one read and one written.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) one: f64,
    pub(crate) all: f64,
}

pub(crate) fn measure() -> Result<Memory, Failure> {
    Ok(Memory { one: copy(1)?, all: copy(WORKERS as usize)? })
}

fn copy(threads: usize) -> Result<f64, Failure> {
    let rates: Result<Vec<f64>, _> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(copy_on_one)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "the copying thread panicked")).collect()
    });
    Ok(rates?.iter().sum())
}

fn copy_on_one() -> f64 {
    let (from, mut to) = (vec![1u8; BYTES], vec![2u8; BYTES]);
    let (started, mut copies) = (Instant::now(), 0);
    while started.elapsed() < TIME {
        black_box(&mut to).copy_from_slice(black_box(&from));
        copies += 1;
    }
    f64::from(copies) * 2.0 * BYTES as f64 / started.elapsed().as_secs_f64() / 1e9
}
