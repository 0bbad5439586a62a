//! What a step costs beside its compute, against the number of ps and of workers: `ps_bench scaling`.
//!
//! Compute is simulated by sleeping, as of a device of its own, so that many workers fit on few cores. From runs whose
//! models differ in size alone follow two constants, the CPU time of a ps per push and per byte, which with the bandwidth of
//! a network say what bounds clusters that do not fit on this machine; the formula is in `BENCHMARKS.md`.

use crate::case::Cluster;
use crate::{Failure, Options};

/// Simulated compute, seconds.
const COMPUTE: f64 = 0.1;
const SIZES: [usize; 2] = [10_000, 1_000_000];
/// Numbers of ps and of workers.
const SHAPES: [(usize, u32); 9] = [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (2, 16), (4, 16), (4, 32)];

/// One line per case, then the constants.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    println!("simulated compute {COMPUTE} s; over TCP; cost: what a step takes longer than its compute");
    println!("mode  parameters  ps workers   steps/s    cost, ms  ps CPU per push, us  events per step");
    let mut measured = Vec::new();
    for mode in ["async", "sync"] {
        for elements in SIZES {
            for (shards, workers) in SHAPES {
                let (transport, seconds) = ("tcp", options.seconds);
                let cluster =
                    Cluster { shards, workers, transport, mode, elements, work: &COMPUTE.to_string(), seconds };
                let done = cluster.run(options.compress)?;
                let rate = done.rates.iter().sum::<f64>() / f64::from(workers);
                let cost = 1.0 / rate - COMPUTE;
                let per_push = done.cpu / done.pushes.max(1.0);
                let steps = if mode == "sync" { done.pushes / f64::from(workers) } else { done.pushes };
                let events = done.events / steps.max(1.0);
                println!(
                    "{mode:<5} {elements:>10} {shards:>3} {workers:>7} {rate:>9.2} {:>11.2} {:>20.1} {events:>16.2}",
                    cost * 1e3,
                    per_push * 1e6
                );
                measured.push((mode, elements, shards, workers, per_push));
            }
        }
    }
    for mode in ["async", "sync"] {
        // Many workers, and a core is left.
        let of = |elements| measured.iter().find(|m| (m.0, m.1, m.2, m.3) == (mode, elements, 1, 16)).map(|m| m.4);
        let (Some(small), Some(large)) = (of(SIZES[0]), of(SIZES[1])) else { continue };
        let bytes = 4.0 * (SIZES[1] - SIZES[0]) as f64;
        let per_byte = (large - small) / bytes;
        let per_push = small - per_byte * 4.0 * SIZES[0] as f64;
        println!(
            "{mode}: {:.1} us of a ps' CPU per push, {:.3} ns per byte of gradient",
            per_push * 1e6,
            per_byte * 1e9
        );
    }
    Ok(())
}
