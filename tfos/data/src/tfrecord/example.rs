//! `tf.train.Example` on the wire: a zero-copy walk over its features.
//!
//! ```text
//! Example  { Features features = 1 }
//! Features { map<string, Feature> feature = 1 }          entry: string key = 1, Feature value = 2
//! Feature  { oneof: BytesList = 1, FloatList = 2, Int64List = 3 }
//! *List    { repeated value = 1 }                        numbers packed or not
//! ```
//! Unknown fields are skipped, and of duplicate keys the last counts, as in protobuf's own readers.

use crate::error::ExampleFault;

/// A fault is boxed: these results are passed around for every value, and nearly all of them are `Ok`.
pub type Wire<T> = std::result::Result<T, Box<ExampleFault>>;

/// Which of the three lists a feature holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bytes = 1,
    Float = 2,
    Int64 = 3,
}

impl Kind {
    /// As the messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "a BytesList",
            Self::Float => "a FloatList",
            Self::Int64 => "an Int64List",
        }
    }

    /// The type in a schema text that takes it as it is.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Bytes => "binary",
            Self::Float => "float32",
            Self::Int64 => "int64",
        }
    }
}

/// One feature's values, still in their encoding.
#[derive(Debug, Clone, Copy)]
pub struct Feature<'a> {
    pub kind: Kind,
    /// The list itself, or the `Feature` message from the first field that counts.
    body: Span<'a>,
    /// Is `body` the list itself?
    single: bool,
}

/// A part of a record that knows where in the record it begins, so that errors can say so.
#[derive(Debug, Clone, Copy)]
struct Span<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A decoded field: its number and what it holds.
enum Field<'a> {
    Varint(u32, u64),
    Fixed32(u32, u32),
    Bytes(u32, Span<'a>),
    Other,
}

impl<'a> Span<'a> {
    #[cold]
    fn fault(&self, what: &'static str) -> Box<ExampleFault> {
        Box::new(ExampleFault::Malformed { at: self.at, what })
    }

    #[inline(always)]
    fn take(&mut self, n: usize, what: &'static str) -> Wire<Span<'a>> {
        let Some((head, rest)) = self.bytes.split_at_checked(n) else {
            return Err(self.fault(what));
        };
        let span = Span { bytes: head, at: self.at };
        self.bytes = rest;
        self.at += n;
        Ok(span)
    }

    #[inline(always)]
    fn varint(&mut self) -> Wire<u64> {
        match self.bytes {
            [a, rest @ ..] if *a < 0x80 => {
                self.bytes = rest;
                self.at += 1;
                Ok(u64::from(*a))
            }
            [a, b, rest @ ..] if *b < 0x80 => {
                self.bytes = rest;
                self.at += 2;
                Ok(u64::from(*a & 0x7f) | u64::from(*b) << 7)
            }
            _ => self.long_varint(),
        }
    }

    #[inline]
    fn long_varint(&mut self) -> Wire<u64> {
        let bytes = self.bytes;
        let (mut value, mut shift) = (0, 0);
        for i in 0..bytes.len().min(10) {
            let byte = bytes[i];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                self.bytes = &bytes[i + 1..];
                self.at += i + 1;
                return Ok(value);
            }
            shift += 7;
        }
        Err(self.fault("a number does not end"))
    }

    #[inline(always)]
    fn length_delimited(&mut self) -> Wire<Span<'a>> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| self.fault("a length is too large"))?;
        self.take(length, "a field is longer than what holds it")
    }

    #[inline]
    fn field(&mut self) -> Wire<Option<Field<'a>>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| self.fault("a field number is too large"))?;
        if number == 0 {
            return Err(self.fault("a field has number 0"));
        }
        Ok(Some(match tag & 7 {
            0 => Field::Varint(number, self.varint()?),
            1 => {
                self.take(8, "a field is cut off")?;
                Field::Other
            }
            2 => Field::Bytes(number, self.length_delimited()?),
            5 => {
                let four = self.take(4, "a field is cut off")?;
                Field::Fixed32(number, le32(four.bytes))
            }
            _ => return Err(self.fault("an unknown wire type")),
        }))
    }
}

/// Calls `each` with every (name, feature) of a record, in the record's order; features without a value are left out.
#[inline]
pub fn for_each_feature<'a>(record: &'a [u8], mut each: impl FnMut(&'a [u8], Feature<'a>) -> Wire<()>) -> Wire<()> {
    let mut example = Span { bytes: record, at: 0 };
    while let Some(field) = example.field()? {
        let Field::Bytes(1, mut features) = field else {
            continue;
        };
        while let [tag, rest @ ..] = features.bytes {
            let entry = if *tag == 0x0a {
                features = Span { bytes: rest, at: features.at + 1 };
                features.length_delimited()?
            } else {
                let Some(Field::Bytes(1, entry)) = features.field()? else {
                    continue;
                };
                entry
            };
            let (key, value) = match usual_entry(entry) {
                Some((key, value)) => (key, Some(value)),
                None => any_entry(entry)?,
            };
            // Not by `map`: a feature that is returned from a call goes through memory.
            if let Some(value) = value
                && let Some(feature) = which(value)?
            {
                each(key, feature)?;
            }
        }
    }
    Ok(())
}

/// A map entry as every writer makes them: key, then value, then nothing.
#[inline(always)]
fn usual_entry<'a>(entry: Span<'a>) -> Option<(&'a [u8], Span<'a>)> {
    let [0x0a, size, rest @ ..] = entry.bytes else {
        return None;
    };
    // A size of 128 and more goes on in the next byte.
    let (key, rest) = (*size < 0x80).then(|| rest.split_at_checked(usize::from(*size)))??;
    let [0x12, rest @ ..] = rest else { return None };
    let mut value = Span { bytes: rest, at: entry.at + entry.bytes.len() - rest.len() };
    let length = value.varint().ok()?;
    (length == value.bytes.len() as u64).then_some((key, value))
}

fn any_entry<'a>(mut entry: Span<'a>) -> Wire<(&'a [u8], Option<Span<'a>>)> {
    let (mut key, mut value): (&[u8], Option<Span<'a>>) = (&[], None);
    while let Some(field) = entry.field()? {
        match field {
            Field::Bytes(1, k) => key = k.bytes,
            Field::Bytes(2, v) => value = Some(v),
            _ => {}
        }
    }
    Ok((key, value))
}

/// The list that counts: the last one named; equal ones that follow each other are one list.
#[inline(always)]
fn which(value: Span<'_>) -> Wire<Option<Feature<'_>>> {
    let kind = match value.bytes {
        [0x0a, ..] => Kind::Bytes,
        [0x12, ..] => Kind::Float,
        [0x1a, ..] => Kind::Int64,
        _ => return which_of_many(value),
    };
    let mut body = Span { bytes: value.bytes.get(1..).unwrap_or_default(), at: value.at + 1 };
    match body.varint() {
        Ok(length) if length == body.bytes.len() as u64 => Ok(Some(Feature { kind, body, single: true })),
        _ => which_of_many(value),
    }
}

fn which_of_many(value: Span<'_>) -> Wire<Option<Feature<'_>>> {
    let mut rest = value;
    let mut found: Option<Feature<'_>> = None;
    loop {
        let start = rest;
        let Some(field) = rest.field()? else {
            return Ok(found);
        };
        let kind = match field {
            Field::Bytes(1, _) => Kind::Bytes,
            Field::Bytes(2, _) => Kind::Float,
            Field::Bytes(3, _) => Kind::Int64,
            _ => continue,
        };
        if found.is_none_or(|f| f.kind != kind) {
            found = Some(Feature { kind, body: start, single: false });
        }
    }
}

impl<'a> Feature<'a> {
    #[inline]
    fn lists(&self, mut each: impl FnMut(Span<'a>) -> Wire<()>) -> Wire<()> {
        if self.single {
            return each(self.body);
        }
        let mut rest = self.body;
        while let Some(field) = rest.field()? {
            match field {
                Field::Bytes(n, list) if n == self.kind as u32 => each(list)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The number of an `Int64List` that has one, as nearly all writers write it.
    #[inline(always)]
    pub(crate) fn one_int(&self) -> Option<i64> {
        match self.body.bytes {
            [0x0a, size, packed @ ..] if usize::from(*size) == packed.len() && self.is(Kind::Int64) => {
                let (last, others) = packed.split_last().filter(|(last, others)| **last < 0x80 && others.len() < 10)?;
                let all = others.iter().rev().try_fold(u64::from(*last), |value, byte| {
                    (*byte >= 0x80).then_some(value << 7 | u64::from(byte & 0x7f))
                });
                Some(all? as i64)
            }
            _ => None,
        }
    }

    /// The same of a `FloatList`.
    #[inline(always)]
    pub(crate) fn one_float(&self) -> Option<f32> {
        match self.body.bytes {
            [0x0a, 4, value @ ..] | [0x0d, value @ ..] if value.len() == 4 && self.is(Kind::Float) => {
                value.first_chunk().map(|value| f32::from_le_bytes(*value))
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn is(&self, kind: Kind) -> bool {
        self.kind == kind && self.single
    }

    /// The values of a `BytesList`.
    #[inline]
    pub fn for_each_bytes(&self, mut each: impl FnMut(&'a [u8]) -> Wire<()>) -> Wire<()> {
        self.lists(|mut list| {
            while let Some(field) = list.field()? {
                if let Field::Bytes(1, value) = field {
                    each(value.bytes)?;
                }
            }
            Ok(())
        })
    }

    /// The values of a `FloatList`, as runs of little-endian `f32` (a run of one where they are not packed).
    #[inline]
    pub fn for_each_floats(&self, mut each: impl FnMut(&[u8]) -> Wire<()>) -> Wire<()> {
        self.lists(|mut list| {
            if let [0x0a, 4, value @ ..] | [0x0d, value @ ..] = list.bytes
                && value.len() == 4
            {
                return each(value);
            }
            while let Some(field) = list.field()? {
                match field {
                    Field::Bytes(1, packed) if packed.bytes.len() % 4 == 0 => each(packed.bytes)?,
                    Field::Bytes(1, packed) => {
                        return Err(packed.fault("packed floats are cut off"));
                    }
                    Field::Fixed32(1, bits) => each(&bits.to_le_bytes())?,
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// The values of an `Int64List`.
    #[inline]
    pub fn for_each_int(&self, mut each: impl FnMut(i64) -> Wire<()>) -> Wire<()> {
        self.lists(|mut list| {
            // One number is by far the commonest list.
            if let [0x0a, size, packed @ ..] = list.bytes
                && usize::from(*size) == packed.len()
                && packed.len() < 0x80
            {
                let mut packed = Span { bytes: packed, at: list.at + 2 };
                while !packed.bytes.is_empty() {
                    each(packed.varint()? as i64)?;
                }
                return Ok(());
            }
            while let Some(field) = list.field()? {
                match field {
                    Field::Bytes(1, mut packed) => {
                        while !packed.bytes.is_empty() {
                            each(packed.varint()? as i64)?;
                        }
                    }
                    Field::Varint(1, value) => each(value as i64)?,
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// How many values there are.
    pub fn count(&self) -> Wire<usize> {
        let mut n = 0;
        match self.kind {
            Kind::Bytes => self.for_each_bytes(|_| {
                n += 1;
                Ok(())
            })?,
            Kind::Float => self.for_each_floats(|run| {
                n += run.len() / 4;
                Ok(())
            })?,
            Kind::Int64 => self.for_each_int(|_| {
                n += 1;
                Ok(())
            })?,
        }
        Ok(n)
    }

    /// Where in `record` the feature lies, to find it again with [`Feature::at`].
    #[inline]
    pub(crate) fn place(&self) -> Place {
        Place { kind: self.kind, single: self.single, at: self.body.at, len: self.body.bytes.len() }
    }

    /// The feature at a [`Feature::place`] of the same record.
    #[inline]
    pub(crate) fn at(record: &'a [u8], place: Place) -> Self {
        let Place { kind, single, at, len } = place;
        Self { kind, single, body: Span { bytes: record.get(at..at + len).unwrap_or_default(), at } }
    }
}

/// Where in its record a feature lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    kind: Kind,
    single: bool,
    at: usize,
    len: usize,
}

impl Place {
    pub(crate) const NOWHERE: Self = Self { kind: Kind::Bytes, single: true, at: 0, len: 0 };
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

#[cfg(test)]
mod tests {
    use super::super::encode::ExampleWriter;
    use super::*;

    fn ints(record: &[u8]) -> Vec<(String, Vec<i64>)> {
        let mut all = Vec::new();
        for_each_feature(record, |name, feature| {
            let mut values = Vec::new();
            feature.for_each_int(|v| {
                values.push(v);
                Ok(())
            })?;
            all.push((String::from_utf8_lossy(name).into_owned(), values));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn packed_and_unpacked_and_unknown_fields() {
        // features { feature { key: "a" value { int64_list { value: 5 value: [6, -1] } } } }, with unknown fields between.
        let minus_one = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let mut list = vec![0x08, 5, 0x0a, 11, 6];
        list.extend_from_slice(&minus_one);
        list.extend_from_slice(&[0x79, 0, 0, 0, 0, 0, 0, 0, 0]); // field 15, fixed64
        let mut feature = vec![0x1a, list.len() as u8];
        feature.extend_from_slice(&list);
        let mut entry = vec![0x0a, 1, b'a', 0x12, feature.len() as u8];
        entry.extend_from_slice(&feature);
        entry.extend_from_slice(&[0x28, 7]); // field 5, varint
        let mut features = vec![0x0a, entry.len() as u8];
        features.extend_from_slice(&entry);
        let mut record = vec![0x0a, features.len() as u8];
        record.extend_from_slice(&features);
        assert_eq!(ints(&record), [("a".to_owned(), vec![5, 6, -1])]);
    }

    #[test]
    fn last_list_of_a_oneof_wins_and_equal_ones_merge() {
        let feature = [0x12, 0, 0x1a, 2, 0x08, 1, 0x1a, 2, 0x08, 2];
        let f = which(Span { bytes: &feature, at: 0 }).unwrap().unwrap();
        assert_eq!((f.kind, f.count().unwrap()), (Kind::Int64, 2));
    }

    #[test]
    fn writer_is_read_back() {
        let mut writer = ExampleWriter::default();
        writer.ints("n", [0, 1, -1, i64::MAX, i64::MIN].into_iter());
        writer.ints("none", std::iter::empty());
        let record = writer.finish().to_vec();
        assert_eq!(ints(&record)[0].1, [0, 1, -1, i64::MAX, i64::MIN]);
        assert_eq!(ints(&record)[1].1, [] as [i64; 0]);
        assert_eq!(writer.finish(), [0x0a, 0], "buffers are empty again");
    }
}
