//! Damage anywhere in a file is found, named and survived.

use super::super::example::for_each_feature;
use super::*;
use crate::error::Damage;

/// Reads all frames of damaged bytes; the error must name the file.
fn damage(bytes: &[u8], name: &str) -> crate::Result<Option<RecordBatch>> {
    let mut reader = FrameReader::new(bytes, name);
    let mut decoder = BatchDecoder::new(parse_schema("s:string,x:int64").unwrap(), 100, name.into())?;
    while let Some(record) = reader.next_record()? {
        decoder.push(record)?;
    }
    decoder.finish()
}

#[test]
fn every_truncation_and_every_flipped_bit_is_found() {
    let rows =
        batch(vec![("s", strings(&[Some("abc"), Some("defg")])), ("x", Arc::new(Int64Array::from(vec![1, 300])))]);
    let plain = frames(&rows);
    let first = frames(&rows.slice(0, 1)).len();
    for (compression, name) in
        [(Compression::None, "x.tfrecord"), (Compression::Gzip, "x.gz"), (Compression::Zlib, "x.zlib")]
    {
        let whole = compress(&plain, compression);
        assert_eq!(damage(&whole, name).unwrap().as_ref(), Some(&rows));
        for end in 1..whole.len() {
            match damage(&whole[..end], name) {
                // A plain file cut between two records is a whole, shorter file.
                Ok(one) if compression == Compression::None && end == first => {
                    assert_eq!(one, Some(rows.slice(0, 1)))
                }
                Ok(_) => panic!("{name} cut at {end}: no error"),
                Err(Error::Truncated { path, end: at, .. }) if compression == Compression::None => {
                    assert_eq!((&*path, at), (name, end as u64));
                }
                Err(error) => assert!(error.to_string().contains(name) && error.is_user(), "{error}"),
            }
        }
        for position in 0..whole.len() {
            for bit in 0..8 {
                let mut bad = whole.clone();
                bad[position] ^= 1 << bit;
                match damage(&bad, name) {
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains(name) && text.contains("byte"), "{text}");
                        if let Error::Corrupt { offset, .. } = error {
                            assert!(compression != Compression::None || offset == 0 || offset as usize <= position);
                        }
                    }
                    // The gzip header holds a time, and the last byte of a deflate stream unused bits: the rows are whole.
                    Ok(same) => assert!(
                        compression != Compression::None && same.as_ref() == Some(&rows),
                        "{name} {position}.{bit}"
                    ),
                }
            }
        }
    }
}

#[test]
fn a_huge_length_with_a_valid_checksum_allocates_nothing() {
    let length = (u64::MAX - 5).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend_from_slice(&crc::masked(&length).to_le_bytes());
    bytes.extend_from_slice(b"short");
    let error = damage(&bytes, "x").unwrap_err();
    assert!(matches!(error, Error::Corrupt { offset: 0, what: Damage::TooLong(_), .. }), "{error}");
    let length = (1_u64 << 30).to_le_bytes();
    bytes[..8].copy_from_slice(&length);
    bytes[8..12].copy_from_slice(&crc::masked(&length).to_le_bytes());
    let error = damage(&bytes, "x").unwrap_err();
    assert!(matches!(error, Error::Truncated { offset: 0, end: 17, .. }), "{error}");
}

#[test]
fn cut_records_are_faults() {
    let mut writer = ExampleWriter::default();
    writer.floats("f", [1.0, 2.0].into_iter());
    writer.bytes("b", [b"xyz".as_slice()].into_iter());
    let record = writer.finish().to_vec();
    for end in 1..record.len() {
        for_each_feature(&record[..end], |_, f| f.count().map(drop)).unwrap_err();
    }
}
