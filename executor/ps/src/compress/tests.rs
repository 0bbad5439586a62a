//! Exactness of the codecs over random gradients, cut at random.

use super::coding::scatter;
use super::*;
use crate::error::Violation;
use crate::reference::Random;
use crate::wire::{Header, Kind};

/// Of magnitudes from 2^-20 to 2^20, some of them 0.
fn gradient(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len)
        .map(|_| match random.below(10) {
            0 => 0.0,
            _ => random.uniform() * 2f32.powi(random.below(41) as i32 - 20),
        })
        .collect()
}

/// The same vector in pieces of random lengths.
fn cut<'a>(random: &mut Random, mut values: &'a [f32]) -> Vec<&'a [f32]> {
    let mut pieces = vec![];
    while !values.is_empty() {
        let (piece, rest) = values.split_at((random.below(5000) as usize).min(values.len()));
        pieces.push(piece);
        values = rest;
    }
    pieces
}

fn decoded(compress: Compress, codes: &[u32], len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    match compress {
        Compress::Bf16 => kernels::decode_bf16(codes, &mut values),
        Compress::TopK { .. } => scatter(codes, &mut values).unwrap(),
        Compress::None => {}
    }
    values
}

#[test]
fn what_is_sent_and_what_is_owed_are_exactly_gradient_and_debt() {
    let mut random = Random::new(1);
    for compress in [Compress::Bf16, Compress::TopK { fraction: 0.01 }, Compress::TopK { fraction: 0.3 }] {
        for len in [1, 2, 3, 4095, 4096, 4097, 20_001] {
            let mut feedback = Feedback::new(compress, len);
            for _ in 0..5 {
                let gradient = gradient(&mut random, len);
                let mut expected = feedback.residual.clone();
                kernels::add(&mut expected, &gradient);
                let pieces = cut(&mut random, &gradient);
                let codes = feedback.encode(pieces.iter().copied()).to_vec();
                assert_eq!(codes.len(), compress.words(len));
                let sent = decoded(compress, &codes, len);
                // A bf16 and what it leaves of an f32 have no bit in common: the sum is exact.
                let sum: Vec<f32> = sent.iter().zip(&feedback.residual).map(|(sent, owed)| sent + owed).collect();
                assert_eq!(sum, expected, "{compress} of {len}");
            }
        }
    }
}

#[test]
fn what_is_sent_are_the_largest() {
    let mut random = Random::new(2);
    let (compress, len) = (Compress::TopK { fraction: 0.05 }, 10_000);
    let mut feedback = Feedback::new(compress, len);
    let gradient = gradient(&mut random, len);
    let sent = decoded(compress, feedback.encode([&gradient[..]].into_iter()), len);
    let smallest = sent.iter().filter(|x| **x != 0.0).map(|x| x.abs()).fold(f32::MAX, f32::min);
    let largest = feedback.residual.iter().map(|x| x.abs()).fold(0.0, f32::max);
    assert_eq!(sent.iter().filter(|x| **x != 0.0).count(), 500);
    assert!(largest <= smallest * (1.0 + 2f32.powi(-13)), "{largest} is owed, and {smallest} was sent");
    // Equal ones go round: in time each is sent.
    let mut feedback = Feedback::new(compress, len);
    let mut sum = vec![0.0; len];
    let ones = vec![1.0; len];
    for _ in 0..40 {
        let sent = decoded(compress, feedback.encode([&ones[..]].into_iter()), len);
        kernels::add(&mut sum, &sent);
    }
    assert!(sum.iter().all(|sum| *sum >= 20.0), "{:?}", sum.iter().copied().fold(f32::MAX, f32::min));
}

#[test]
fn a_half_is_the_nearest_one() {
    // Ties go to the even one; what is above the largest half is infinite.
    for (value, nearest) in [
        (1.0, 1.0),
        (1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
        (-1.0 - 1.1 / 256.0, -1.0 - 2.0 / 256.0),
        (1e-45, 0.0),
        (f32::MAX, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
    ] {
        let (mut left, mut codes) = ([value], [0]);
        kernels::encode_bf16(&mut left, &mut codes);
        let mut back = [0.0];
        kernels::decode_bf16(&codes, &mut back);
        assert_eq!(back, [nearest], "{value}");
        assert!(left[0].is_finite());
    }
    let (mut left, mut codes) = ([f32::from_bits(0x7f80_0001); 2], [0]);
    kernels::encode_bf16(&mut left, &mut codes);
    let mut back = [0.0; 2];
    kernels::decode_bf16(&codes, &mut back);
    assert!(back[0].is_nan() && back[1].is_nan() && left == [0.0; 2]);
}

#[test]
fn a_dropped_push_leaves_the_debt_as_it_was() {
    let mut random = Random::new(3);
    for compress in [Compress::Bf16, Compress::TopK { fraction: 0.1 }] {
        let len = 5001;
        let mut feedback = Feedback::new(compress, len);
        let first: Vec<f32> = (0..len).map(|_| random.uniform()).collect();
        feedback.encode([&first[..]].into_iter());
        let before = feedback.residual.clone();
        let second: Vec<f32> = (0..len).map(|_| random.uniform()).collect();
        feedback.encode(cut(&mut random, &second).into_iter());
        assert_ne!(feedback.residual, before);
        feedback.undo(cut(&mut random, &second).into_iter());
        // Both sums are rounded once.
        let worst = feedback.residual.iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 4.0 * f32::EPSILON, "{compress}: {worst}");
    }
}

#[test]
fn lengths_and_indices_of_strangers_are_refused() {
    let header = |flags, body| Header { flags, body, ..Header::new(Kind::PushPull) };
    for (flags, body, coding) in [
        (0, 9, Coding::Plain),
        (wire::BF16, 5, Coding::Bf16),
        (wire::BF16 | wire::BUFFERS, 5, Coding::Bf16),
        (wire::SPARSE, 0, Coding::Sparse(0)),
        (wire::SPARSE, 18, Coding::Sparse(9)),
    ] {
        assert_eq!(Coding::of(&header(flags, body), 9), Ok(coding));
    }
    for (flags, body) in [
        (0, 8),
        (wire::BF16, 9),
        (wire::SPARSE, 20),
        (wire::SPARSE, 3),
        (wire::SPARSE, u64::MAX),
        (wire::SPARSE | wire::BF16, 5),
    ] {
        assert!(Coding::of(&header(flags, body), 9).is_err(), "{flags} {body}");
    }
    let in_order = Header { flags: wire::BF16, body: 5, ..Header::new(Kind::Push) };
    assert!(matches!(Coding::of(&in_order, 9), Err(Violation::Malformed { .. })));
    for indices in [[0, 0], [2, 1], [1, 9], [u32::MAX, u32::MAX]] {
        let codes = [indices[0], indices[1], 0, 0];
        assert!(scatter(&codes, &mut [0.0; 9]).is_err(), "{indices:?}");
    }
}

#[test]
fn names_say_how_gradients_travel() {
    for text in ["none", "bf16", "topk:0.01", "topk:0.5"] {
        assert_eq!(text.parse::<Compress>().unwrap().to_string(), text);
    }
    for text in ["", "fp16", "topk", "topk:", "topk:0", "topk:0.51", "topk:-1", "topk:NaN"] {
        assert!(text.parse::<Compress>().is_err(), "{text}");
    }
    let bytes = |text: &str| 4 * text.parse::<Compress>().unwrap().words(1_000_001);
    assert_eq!([bytes("none"), bytes("bf16"), bytes("topk:0.01")], [4_000_004, 2_000_004, 80_008]);
}
