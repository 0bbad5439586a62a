//! The targets without libFuzzer: seeds, what was found once, and many thousand inputs that are nearly seeds.

use tfos_fuzz::targets::{TARGETS, metered};
use tfos_fuzz::{Meter, memory, seeds};

#[global_allocator]
static METER: Meter = Meter;

/// Inputs for each target.
const INPUTS: usize = 20_000;

/// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// A seed with a few bytes changed, cut out, put in or taken from another seed.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.below(6)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 if !bytes.is_empty() => drop(bytes.remove(at)),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                bytes.splice(at.., other[random.below(other.len())..].iter().copied());
            }
        }
    }
    bytes
}

#[test] // FUZ-1
fn no_bytes_make_a_decoder_panic_or_take_what_they_claim() {
    for (name, target) in TARGETS {
        let seeds = seeds::of(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| metered(target, seed));
        let mut random = Random(7);
        for number in 0..INPUTS {
            let bytes = mutated(&seeds, &mut random);
            let run = || metered(target, &bytes);
            if let Err(panic) = std::panic::catch_unwind(run) {
                println!("{name}, input {number}: {bytes:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test] // FUZ-1
fn what_was_found_once_is_found_no_more() {
    for (name, target) in TARGETS {
        let folder = format!("{}/found/{name}", env!("CARGO_MANIFEST_DIR"));
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            println!("{}", file.path().display());
            metered(target, &std::fs::read(file.path()).unwrap());
        }
    }
}

#[test] // a search that begins with refused pages would see nothing of what comes behind their levels
fn seeds_of_pages_are_pages() {
    let seeds = seeds::of("page");
    let read = seeds.iter().filter(|seed| tfos_data::numbers_hostile::page(seed).is_some()).count();
    assert!(read >= seeds.len() / 2, "{read} of {}", seeds.len());
}

#[test] // a meter that counts nothing would prove nothing
fn the_meter_counts() {
    let (kept, peak) = memory::peak(|| {
        drop(std::hint::black_box(vec![0u8; 3 << 20]));
        vec![0u8; 1 << 20]
    });
    assert!((3 << 20..4 << 20).contains(&peak), "{peak}");
    let claimed = |_: &[u8]| drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 30)));
    assert!(std::panic::catch_unwind(|| metered(claimed, b"1 GiB")).is_err());
    drop(kept);
}
