//! Hostile bytes: no panic, and DataFusion's own rows or error.

use bytes::Bytes;

use super::*;
use crate::error::Error;
use crate::numbers::hybrid::Hybrid;
use crate::numbers::levels::{Levels, Lists, Meaning};
use crate::numbers::values::{Dictionary, Values};
use datafusion::arrow::array::types::{Float64Type, UInt8Type};

#[tokio::test] // PQT-2
async fn flipped_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (path, damaged) = (dir.path().join("whole.parquet"), dir.path().join("t.parquet"));
    let (mut back, mut failed, mut same, mut panicked) = (0, 0, 0, 0);
    for seed in 0..60 {
        let mut random = Random::new(1000 + seed);
        let what = table(&path, &mut random);
        let whole = std::fs::read(&path).unwrap();
        let footer = u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        std::fs::write(&damaged, &whole).unwrap();
        let ctx = session();
        let plan =
            planned(&ctx, &damaged, ["select x, label, y from t", "select y, name, label from t"][seed as usize % 2])
                .await;
        let task = task(&ctx, 64);
        for _ in 0..10 {
            let mut bytes = whole.clone();
            let pages = bytes.len() - footer - 8;
            for _ in 0..1 + random.below(3) {
                bytes[4 + random.below(pages.max(5) - 4)] ^= 1 << random.below(8);
            }
            std::fs::write(&damaged, bytes).unwrap();
            let (theirs, fast) = (Arc::clone(&plan), faster(&plan).unwrap());
            // Arrow's reader may panic, as it did before there was another.
            let there = Arc::clone(&task);
            let theirs = tokio::spawn(async move { rows(&theirs, 0, &there).await }).await;
            let (here, read) = (Arc::clone(&task), Arc::clone(&fast));
            let ours = tokio::spawn(async move { rows(&read, 0, &here).await }).await;
            back += counted(&fast, GIVEN_BACK);
            match (theirs, ours) {
                (Ok(Ok(theirs)), ours) => {
                    assert_eq!(theirs, ours.unwrap().unwrap(), "{seed} {what}");
                    same += 1;
                }
                (Ok(Err(_)), ours) => {
                    // A decoder that reads less may not meet the damage.
                    assert!(ours.is_ok(), "{seed} {what}");
                    failed += 1;
                }
                (Err(_), _) => {
                    let read = crate::plan::execute(&plan, 0, &ctx).unwrap().try_collect::<Vec<_>>().await;
                    let named = read.map_err(Error::from_datafusion);
                    assert!(matches!(&named, Ok(_) | Err(Error::Damaged { .. })), "{seed} {what}: {named:?}");
                    panicked += 1;
                }
            }
        }
    }
    assert!(back > 10 && failed > 10 && same > 10 && panicked > 0, "{back} {failed} {same} {panicked}");
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let mut random = Random::new(3);
    table(&path, &mut random);
    let ctx = session();
    let plan = planned(&ctx, &path, "select x from t").await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4..200].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    // Its name is all that is left of a row's way through both readers.
    let error = crate::plan::execute(&plan, 0, &ctx).unwrap().try_collect::<Vec<_>>().await.unwrap_err();
    let error = Error::from_datafusion(error);
    assert!(matches!(&error, Error::Damaged { path: named, .. } if named.ends_with("t.parquet")), "{error}");
}

/// PQT-3: streams of random bytes are read or refused, and what they make is no more than the page says.
#[test]
fn random_bytes() {
    let mut random = Random::new(7);
    let bytes = |n: usize, random: &mut Random| -> Bytes {
        (0..n).map(|_| if random.once_in(3) { random.below(4) as u8 } else { random.below(256) as u8 }).collect()
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let meaning = Meaning {
            list_nullable: random.once_in(2),
            item_nullable: random.once_in(2),
            fixed: random.once_in(3).then_some(3),
        };
        let count = random.below(2000);
        let mut levels = Levels {
            repetition: Hybrid::new(bytes(40, &mut random), 1).unwrap(),
            definition: Hybrid::new(bytes(40, &mut random), meaning.def_width()).unwrap(),
            left: count,
        };
        let (mut lists, rows) = (Lists::with_capacity(10), 1 + random.below(100));
        match levels.read(meaning, rows, &mut lists) {
            Ok(values) => {
                assert!(values <= count && lists.starts.len() <= rows && lists.places <= 3 * count);
                read += 1;
            }
            Err(_) => refused += 1,
        }
        let entries = random.below(300);
        let dictionary = Arc::new(Dictionary::<UInt8Type>::new(&bytes(4 * entries, &mut random), entries).unwrap());
        assert!(Dictionary::<Float64Type>::new(&[0; 15], 2).is_err());
        let mut values = bytes(60, &mut random).to_vec();
        values[0] %= 34;
        let mut out = vec![];
        let Ok(mut values) = Values::indices(values.into(), &dictionary) else { continue };
        for _ in 0..3 {
            match values.read(random.below(60), &mut out) {
                Ok(()) => read += 1,
                Err(_) => refused += 1,
            }
            assert!(out.len() <= 180);
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} {refused}");
}
