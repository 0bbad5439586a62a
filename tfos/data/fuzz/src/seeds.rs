//! What a search begins with: files and records as writers make them, and some that lie.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tfos_data::tfrecord::ExampleWriter;

/// The seeds of a target, in the form that it takes.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "tfrecord" => files(),
        "example" => records(),
        "idx" => pairs(),
        "page" => pages(),
        _ => vec![],
    }
}

/// Writes the seeds of a target into the folder that `FUZZ_SEEDS` names, where libFuzzer then finds them.
pub fn write(target: &str) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS").map(std::path::PathBuf::from) else { return };
    for (number, seed) in of(target).into_iter().enumerate() {
        let written = std::fs::write(folder.join(format!("seed-{number}")), seed);
        assert!(written.is_ok(), "{}: {written:?}", folder.display());
    }
}

fn records() -> Vec<Vec<u8>> {
    let mut writer = ExampleWriter::default();
    let mut all = vec![];
    writer.ints("a", [1].into_iter());
    writer.ints("b", [i64::MIN, -1, 0, i64::MAX].into_iter());
    writer.floats("c", [0.5, f32::NAN].into_iter());
    writer.bytes("d", [b"text".as_slice()].into_iter());
    writer.bytes("e", [b"\xff".as_slice(), b""].into_iter());
    writer.ints("f", [1].into_iter());
    writer.ints("g", [7].into_iter());
    all.push(writer.finish().to_vec());
    writer.floats("h", [1.0, 2.0, 3.0].into_iter());
    writer.bytes("i", [b"abc".as_slice()].into_iter());
    writer.bytes("j", ["ünï".as_bytes()].into_iter());
    writer.bytes("k", [b"".as_slice(); 3].into_iter());
    writer.ints("o", [1, 0, 1, 0].into_iter());
    all.push(writer.finish().to_vec());
    writer.ints("empty", std::iter::empty());
    all.push(writer.finish().to_vec());
    // Unpacked numbers, a list in two parts, a key twice, an entry without a value, unknown fields.
    all.push(vec![0x0a, 0x0d, 0x0a, 0x0b, 0x0a, 1, b'a', 0x12, 6, 0x1a, 4, 0x08, 5, 0x08, 6]);
    all.push(vec![0x0a, 0x10, 0x0a, 0x0e, 0x0a, 1, b'b', 0x12, 9, 0x1a, 2, 0x08, 1, 0x12, 0, 0x1a, 1, 0x0a]);
    all.push(vec![0x0a, 5, 0x0a, 3, 0x0a, 1, b'x', 0x79, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Lengths that lie.
    all.push(vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    all.push(vec![0x0a, 0x0a, 0x0a, 0x08, 0x0a, 1, b'c', 0x12, 0xff, 0xff, 0xff, 0x7f]);
    all
}

fn files() -> Vec<Vec<u8>> {
    let mut all = vec![];
    let framed: Vec<u8> = records().iter().flat_map(|r| [&[r.len().min(254) as u8][..], r].concat()).collect();
    // Framed here; plain, zlib, gzip; in one piece and in pieces of a byte.
    for (mode, size) in [(1, 255), (1, 0), (3, 16), (7, 16), (7, 0)] {
        all.push([&[mode, size][..], &framed].concat());
    }
    // As they are: a frame of 3 bytes, and then bytes that are none.
    let frame = [3, 0, 0, 0, 0, 0, 0, 0, 0x15, 0x8f, 0x5c, 0x9d, b'a', b'b', b'c', 0, 0, 0, 0];
    all.push([&[0, 3][..], &frame].concat());
    all.push([&[0, 3, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff][..], &frame].concat());
    all.push([&[0, 3, 0x78, 0x9c][..], &frame].concat());
    // A length of many gigabytes with its right checksum.
    for claim in [u64::MAX, 1 << 40, 1 << 30] {
        all.push([&[1, 9, 1, 0xaa, 255][..], &claim.to_le_bytes(), b"short"].concat());
    }
    all
}

fn pairs() -> Vec<Vec<u8>> {
    let head = |dims: &[u32]| -> Vec<u8> {
        [0, 0, 8, dims.len() as u8].into_iter().chain(dims.iter().flat_map(|d| d.to_be_bytes())).collect()
    };
    let pair = |images: &[u8], labels: &[u8], mode: u8| -> Vec<u8> {
        [&(images.len() as u16).to_be_bytes()[..], &[mode], images, labels].concat()
    };
    let gzip = |bytes: &[u8]| -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
    };
    let (images, labels) = ([head(&[2, 1, 3]), vec![1, 2, 3, 4, 5, 255]].concat(), [head(&[2]), vec![7, 9]].concat());
    vec![
        pair(&images, &labels, 0),
        pair(&gzip(&images), &gzip(&labels), 1),
        pair(&head(&[0, 28, 28]), &head(&[0]), 0),
        pair(&head(&[u32::MAX, u32::MAX, u32::MAX]), &labels, 0),
        pair(&head(&[2, u32::MAX, u32::MAX]), &labels, 0),
        pair(&[head(&[2, 1, 3]), vec![0; 4000]].concat(), &head(&[u32::MAX]), 0),
    ]
}

fn pages() -> Vec<Vec<u8>> {
    let page = |kind: u8, count: u16, levels: [&[u8]; 2], dictionary: &[u8], values: &[u8]| -> Vec<u8> {
        let [low, high] = count.to_le_bytes();
        let head = [kind, low, high, 99, levels[0].len() as u8, levels[1].len() as u8, dictionary.len() as u8];
        [&head[..], levels[0], levels[1], dictionary, values].concat()
    };
    let dictionary: Vec<u8> = (0..9u32).flat_map(u32::to_le_bytes).collect();
    // Eight rows of PLAIN, with and without nulls; of a dictionary, as a run and packed; a width of 12 bits.
    let mut all = vec![
        page(2 | 32, 8, [&[], &[16, 1]], &[], &[7; 32]),
        page(2 | 32, 8, [&[], &[3, 0b1011_0101]], &[], &[7; 32]),
        page(1 | 2 | 32, 8, [&[], &[4, 1, 12, 0]], &[], &[7; 16]),
        page(2, 8, [&[], &[16, 1]], &dictionary, &[4, 16, 8]),
        page(2, 8, [&[], &[16, 1]], &dictionary, &[4, 3, 0x10, 0x32, 0x54, 0x76]),
        page(2, 16, [&[], &[32, 1]], &dictionary, &[[12, 5].as_slice(), &[1, 0x20, 0].repeat(8)].concat()),
    ];
    // Lists of four, null ones and null elements among them, and of fixed size.
    for kind in [0, 4, 8, 4 | 8, 4 | 8 | 16, 16] {
        let most = 1 + (kind >> 2 & 1) + (kind >> 3 & 1);
        all.push(page(kind | 32, 8, [&[3, 0b1110_1110], &[16, most]], &[], &[7; 32]));
        all.push(page(kind, 8, [&[3, 0b1100_1110], &[5, 0b0110_1011, 0b1101_1001, 0, 0]], &dictionary, &[4, 16, 8]));
    }
    // Lengths that lie.
    all.push(page(
        2,
        u16::MAX,
        [&[], &[0xff, 0xff, 0xff, 0xff, 0x0f, 1]],
        &dictionary,
        &[32, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ));
    all.push(page(4 | 16, u16::MAX, [&[0xfe, 0xff, 0x07, 0], &[0xfe, 0xff, 0x07, 0]], &[], &[]));
    all
}
