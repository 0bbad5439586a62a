//! Where each variable lies in the flat vector, and which shard holds which range of it.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// An even cut is at a multiple of 16 `f32`, one cache line of 64 bytes, so that sizes differ by at most one.
const ALIGNMENT: usize = 16;
/// From there it moves by up to this part of a shard to where a variable or a row of one begins: both neighbours stay within
/// 5 % of the mean.
const SLACK: usize = 42;

/// One tensor in the flat vector; dtype is always `f32`, elements in row-major order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    pub name: String,
    pub shape: Vec<i64>,
    /// Index of its first element in the flat vector.
    pub offset: usize,
}

impl Variable {
    /// Number of elements; 1 for a scalar (empty shape).
    pub fn len(&self) -> usize {
        // A shape may have come from elsewhere.
        self.shape.iter().fold(1, |len: usize, &dimension| len.saturating_mul(usize::try_from(dimension).unwrap_or(0)))
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The model as the parameter servers see it: two flat `f32` vectors.
///
/// `variables` are trained, and cut over all shards. `buffers` (running statistics and other state without a
/// gradient) are assigned by the workers and held by ps:0 only. Both are sorted by name, but for variables that were
/// placed whole ([`Layout::round_robin`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub variables: Vec<Variable>,
    /// Elements of all variables.
    pub total: usize,
    pub buffers: Vec<Variable>,
    /// Elements of all buffers.
    pub buffers_total: usize,
    /// Where each shard but the last ends; even cuts, near enough, where there is none. What was saved says it too, but it binds
    /// nobody: a checkpoint is read by names and ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuts: Option<Vec<usize>>,
}

impl Layout {
    /// Sorts by name and assigns the offsets. Names must be unique within each list.
    pub fn new(
        variables: impl IntoIterator<Item = (String, Vec<i64>)>,
        buffers: impl IntoIterator<Item = (String, Vec<i64>)>,
    ) -> Result<Layout, Error> {
        let (variables, total) = place(sorted(variables))?;
        let (buffers, buffers_total) = place(sorted(buffers))?;
        Ok(Layout { variables, total, buffers, buffers_total, cuts: None })
    }

    /// TensorFlow's placement: whole variables, in the order in which they were created (which is theirs here), go round
    /// the shards. Each shard's lie side by side in the flat vector, so shards are as uneven as the variables are.
    pub fn round_robin(
        created: impl IntoIterator<Item = (String, Vec<i64>)>,
        buffers: impl IntoIterator<Item = (String, Vec<i64>)>,
        shards: usize,
    ) -> Result<Layout, Error> {
        let shards = shards.max(1);
        let mut dealt: Vec<Vec<(String, Vec<i64>)>> = vec![Vec::new(); shards];
        for (number, variable) in created.into_iter().enumerate() {
            dealt[number % shards].push(variable);
        }
        let before: Vec<usize> = dealt[..shards - 1]
            .iter()
            .scan(0, |sum, hand| {
                *sum += hand.len();
                Some(*sum)
            })
            .collect();
        let (variables, total) = place(dealt.into_iter().flatten().collect())?;
        let (buffers, buffers_total) = place(sorted(buffers))?;
        let end = |&count: &usize| variables.get(count).map_or(total, |next: &Variable| next.offset);
        let cuts = Some(before.iter().map(end).collect());
        Ok(Layout { variables, total, buffers, buffers_total, cuts })
    }

    /// The range of the flat vector that shard `shard` of `shards` holds. The ranges of all shards, in order, cover
    /// `0..total` without gaps.
    pub fn range(&self, shards: usize, shard: usize) -> Range<usize> {
        // Clamped, as a layout may have come from elsewhere.
        let cut = |k: usize| match &self.cuts {
            _ if k == 0 => 0,
            Some(cuts) => cuts.get(k - 1).copied().unwrap_or(self.total).min(self.total),
            None => self.cut_near(shard_range(self.total, shards, k).start, self.total / shards.max(1) / SLACK),
        };
        cut(shard)..cut(shard + 1).max(cut(shard))
    }

    /// The best place for a cut at most `slack` from `at`: a variable that lies whole on one ps need not be put together, and a
    /// row of an embedding table is wanted whole.
    fn cut_near(&self, at: usize, slack: usize) -> usize {
        let next = self.variables.partition_point(|variable| variable.offset <= at);
        let Some(variable) = next.checked_sub(1).and_then(|last| self.variables.get(last)) else { return at };
        let nearest = |places: [usize; 2]| places.into_iter().min_by_key(|place| place.abs_diff(at)).unwrap_or(at);
        let end = variable.offset.saturating_add(variable.len());
        let rows = variable.shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(1);
        let row = (variable.len() / rows.max(1)).max(1);
        let before = at - (at - variable.offset) % row;
        let places = [nearest([variable.offset, end]), nearest([before, before.saturating_add(row)])];
        let found = places.into_iter().find(|place| place.abs_diff(at) <= slack && *place <= self.total);
        found.unwrap_or(at)
    }

    /// The ranges of all shards.
    pub fn ranges(&self, shards: usize) -> impl Iterator<Item = Range<usize>> {
        (0..shards).map(move |shard| self.range(shards, shard))
    }

    /// Whether its cuts are those of so many shards.
    pub(crate) fn check_cuts(&self, shards: usize) -> Result<(), String> {
        let Some(cuts) = &self.cuts else { return Ok(()) };
        if cuts.len() + 1 != shards {
            return Err(format!("it is cut for {} shards, and there are {shards}", cuts.len() + 1));
        }
        if !cuts.is_sorted() || cuts.last().is_some_and(|&last| last > self.total) {
            return Err(format!("its cuts are not in order, or beyond its {} elements", self.total));
        }
        Ok(())
    }

    /// Name of each variable, and its part that lies in `range`, counted from its start; empty for those that lie elsewhere.
    pub(crate) fn parts_in(&self, range: Range<usize>) -> Vec<(String, Range<usize>)> {
        let cut = |at: usize| at.clamp(range.start, range.end) - range.start;
        let part = |v: &Variable| (v.name.clone(), cut(v.offset)..cut(v.offset + v.len()));
        self.variables.iter().map(part).collect()
    }

    /// Equal for two layouts iff names, shapes, order and given cuts are (up to a 64-bit hash).
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        for (list, tag) in [(&self.variables, 1u8), (&self.buffers, 2u8)] {
            for variable in list {
                hash.add(&[tag]);
                hash.add(&(variable.name.len() as u64).to_le_bytes());
                hash.add(variable.name.as_bytes());
                hash.add(&(variable.shape.len() as u64).to_le_bytes());
                for dimension in &variable.shape {
                    hash.add(&dimension.to_le_bytes());
                }
            }
        }
        for cut in self.cuts.iter().flatten() {
            hash.add(&[3]);
            hash.add(&(*cut as u64).to_le_bytes());
        }
        Fingerprint {
            variables: self.variables.len(),
            elements: self.total,
            buffer_elements: self.buffers_total,
            hash: hash.0,
        }
    }
}

fn sorted(declared: impl IntoIterator<Item = (String, Vec<i64>)>) -> Vec<(String, Vec<i64>)> {
    let mut declared: Vec<_> = declared.into_iter().collect();
    declared.sort();
    declared
}

/// One after the other.
fn place(declared: Vec<(String, Vec<i64>)>) -> Result<(Vec<Variable>, usize), Error> {
    let mut names: Vec<&str> = declared.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(&[name, _]) = names.array_windows().find(|[name, next]| name == next) {
        return Err(Error::DuplicateVariable { name: name.to_owned() });
    }
    let mut placed: Vec<Variable> = Vec::with_capacity(declared.len());
    let mut offset = 0usize;
    for (name, shape) in declared {
        let end = shape
            .iter()
            .try_fold(1usize, |product, &dimension| product.checked_mul(usize::try_from(dimension).ok()?))
            .and_then(|len| offset.checked_add(len));
        let Some(end) = end else {
            return Err(Error::BadShape { name, shape });
        };
        placed.push(Variable { name, shape, offset });
        offset = end;
    }
    Ok((placed, offset))
}

/// A layout in four numbers: enough to refuse a worker that was built from another model, and to say why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub variables: usize,
    pub elements: usize,
    pub buffer_elements: usize,
    /// FNV-1a (64 bit) over tags, names and shapes.
    pub hash: u64,
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fingerprint { variables, elements, buffer_elements, hash } = self;
        write!(f, "{variables} variables of {elements} elements, {buffer_elements} in buffers, hash {hash:016x}")
    }
}

struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The even cut at cache lines: the range of the flat vector that shard `shard` of `shards` holds.
///
/// The ranges of all shards, in order, cover `0..total` without gaps. A shard may be empty when the model is tiny.
pub fn shard_range(total: usize, shards: usize, shard: usize) -> Range<usize> {
    let shards = shards.max(1);
    let lines = total.div_ceil(ALIGNMENT) as u128;
    let cut = |k: usize| ((lines * k as u128 / shards as u128) as usize * ALIGNMENT).min(total);
    cut(shard.min(shards))..cut((shard + 1).min(shards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_sorted_and_placed() {
        let layout = Layout::new(
            [("w".into(), vec![2, 3]), ("b".into(), vec![]), ("e".into(), vec![0, 7])],
            [("m".into(), vec![4])],
        )
        .unwrap();
        let offsets: Vec<_> = layout.variables.iter().map(|v| (v.name.as_str(), v.offset, v.len())).collect();
        assert_eq!(offsets, [("b", 0, 1), ("e", 1, 0), ("w", 1, 6)]);
        assert_eq!((layout.total, layout.buffers_total), (7, 4));
    }

    #[test]
    fn the_parts_of_the_variables_cover_each_range() {
        let shapes = [("a", vec![20]), ("b", vec![0]), ("c", vec![60])].map(|(name, shape)| (name.to_owned(), shape));
        let layout = Layout::new(shapes, []).unwrap();
        let parts = |range| layout.parts_in(range).into_iter().map(|(_, part)| part).collect::<Vec<_>>();
        assert_eq!(parts(0..80), [0..20, 20..20, 20..80]);
        assert_eq!(parts(16..48), [0..4, 4..4, 4..32]);
        assert_eq!(parts(48..80), [0..0, 0..0, 0..32]);
    }

    #[test]
    fn a_fingerprint_sees_names_shapes_and_kind() {
        let layout = |name: &str, shape: Vec<i64>| Layout::new([(name.to_owned(), shape)], []).unwrap().fingerprint();
        assert_eq!(layout("w", vec![2, 3]), layout("w", vec![2, 3]));
        assert_ne!(layout("w", vec![2, 3]), layout("w", vec![3, 2]));
        assert_ne!(layout("w", vec![2, 3]), layout("v", vec![2, 3]));
        let buffer = Layout::new([], [("w".to_owned(), vec![2, 3])]).unwrap().fingerprint();
        assert_ne!(layout("w", vec![2, 3]).hash, buffer.hash);
    }

    #[test]
    fn nonsense_is_refused() {
        let twice = Layout::new([("w".into(), vec![1]), ("w".into(), vec![2])], []);
        assert!(matches!(twice, Err(Error::DuplicateVariable { .. })));
        assert!(matches!(Layout::new([("w".into(), vec![-1])], []), Err(Error::BadShape { .. })));
        let huge = Layout::new([("w".into(), vec![i64::MAX, i64::MAX])], []);
        assert!(matches!(huge, Err(Error::BadShape { .. })));
    }

    #[test]
    fn whole_variables_go_round_the_shards_in_the_order_of_their_creation() {
        let created = [("z", 5), ("a", 1), ("m", 7), ("b", 2), ("k", 0)].map(|(n, len)| (n.to_owned(), vec![len]));
        let layout = Layout::round_robin(created.clone(), [], 3).unwrap();
        let order: Vec<_> = layout.variables.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(order, ["z", "b", "a", "k", "m"]);
        assert_eq!(layout.ranges(3).collect::<Vec<_>>(), [0..7, 7..8, 8..15]);
        assert_eq!((layout.total, layout.check_cuts(3)), (15, Ok(())));
        assert!(layout.check_cuts(2).is_err());
        // More shards than variables leaves the last ones empty.
        let few = Layout::round_robin(created.clone(), [], 7).unwrap();
        let ranges: Vec<_> = few.ranges(7).collect();
        assert_eq!((ranges.len(), &ranges[5..]), (7, &[15..15, 15..15][..]));
        // Where things lie is part of what all have to agree on, and travels.
        assert_ne!(layout.fingerprint(), Layout::round_robin(created.clone(), [], 2).unwrap().fingerprint());
        let text = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
        let even = Layout::new(created, []).unwrap();
        assert!(!serde_json::to_string(&even).unwrap().contains("cuts"));
    }

    #[test]
    fn cuts_from_elsewhere_are_checked_and_never_panic() {
        let mut layout = Layout::new([("w".into(), vec![10])], []).unwrap();
        layout.variables.push(Variable { name: "v".into(), shape: vec![i64::MAX, 3], offset: 4 });
        for cuts in [Some(vec![3]), Some(vec![8, 3]), Some(vec![3, 11]), Some(vec![usize::MAX, 0]), None] {
            layout.cuts = cuts;
            assert_eq!(layout.check_cuts(3).is_err(), layout.cuts.is_some());
            for range in layout.ranges(3) {
                assert!(range.start <= range.end && range.end <= 10);
            }
        }
    }

    #[test] // the balance that the even placement promises, for models of any variables
    fn even_shards_are_balanced_to_within_five_percent_for_any_model() {
        let mut random = crate::reference::Random::new(7);
        for _ in 0..500 {
            let shards = 1 + random.below(16) as usize;
            let count = 1 + random.below(40);
            let variables: Vec<_> = (0..count)
                // From scalars to one tensor that outweighs all others.
                .map(|i| {
                    let bits = random.below(22);
                    (format!("v{i}"), vec![1 + random.below(1 << bits) as i64])
                })
                .collect();
            let layout = Layout::new(variables, []).unwrap();
            let longest = layout.ranges(shards).map(|range| range.len()).max().unwrap();
            let even = layout.total as f64 / shards as f64;
            // A cut is at a cache line, which is more than that only where a shard has a few lines.
            let allowed = (even * 1.05).max(even + 2.0 * ALIGNMENT as f64);
            assert!(longest as f64 <= allowed, "{longest} of {} over {shards}", layout.total);
        }
    }

    #[test]
    fn a_cut_is_between_variables_or_between_rows_where_one_is_near() {
        let ranges = |shapes: &[&[i64]], shards| {
            let variables = shapes.iter().enumerate().map(|(i, shape)| (format!("v{i:02}"), shape.to_vec()));
            Layout::new(variables, []).unwrap().ranges(shards).map(|range| range.end).collect::<Vec<_>>()
        };
        // Two layers of nearly the same size: each is whole.
        assert_eq!(ranges(&[&[1000, 99], &[100_000]], 2), [99_000, 199_000]);
        // A table and a bias: rows of 77 are whole, and a vector has none.
        assert_eq!(ranges(&[&[10_000, 77], &[10]], 3), [3333 * 77, 6667 * 77, 770_010]);
        assert_eq!(ranges(&[&[1_000_000]], 3), [333_328, 666_656, 1_000_000]);
        // A row that is a large part of a shard is cut.
        assert_eq!(ranges(&[&[3, 100_000]], 2), [150_000, 300_000]);
        // Nothing is near in a tiny model.
        assert_eq!(ranges(&[&[5, 7]], 2), [16, 35]);
    }

    #[test]
    fn shards_cover_everything_evenly() {
        for total in [0, 1, 15, 16, 17, 1000, 25_000_003] {
            for shards in 1..9 {
                let ranges: Vec<_> = (0..shards).map(|k| shard_range(total, shards, k)).collect();
                assert_eq!(ranges[0].start, 0);
                assert_eq!(ranges[shards - 1].end, total);
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                let longest = ranges.iter().map(ExactSizeIterator::len).max().unwrap();
                let shortest = ranges.iter().map(ExactSizeIterator::len).min().unwrap();
                assert!(longest - shortest < 2 * ALIGNMENT, "{ranges:?}");
            }
        }
    }
}
