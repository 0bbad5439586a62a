//! Handwritten-looking digits made from strokes: data to learn from without a file or a network.
//!
//! A digit is a few lines and arcs in a unit square. Each image draws one style of its digit through a random affine
//! map and a random smooth bend, with a random pen, then fades it and adds noise.

use std::f32::consts::TAU;
use std::sync::Arc;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tfos_data::arrow::array::{Array, FixedSizeListArray, Int64Array, RecordBatch, UInt8Array};
use tfos_data::arrow::datatypes::{DataType, Field, Schema};
use tfos_data::arrow::error::ArrowError;

/// Width and height of an image, in pixels.
pub const SIDE: usize = 28;

/// Pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;

/// `rows` images, [`PIXELS`] bytes each, row by row from the top left, ink bright on black; and their labels, 0 to 9.
///
/// The same seed gives the same rows, and more rows begin with the fewer.
pub fn generate(seed: u64, rows: usize) -> (Vec<u8>, Vec<i64>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut images = Vec::with_capacity(rows * PIXELS);
    let mut labels = Vec::with_capacity(rows);
    for _ in 0..rows {
        let (label, styles) = pick(&DIGITS, &mut random);
        let (_, style) = pick(styles, &mut random);
        images.extend(draw(style, &mut random));
        labels.push(label);
    }
    (images, labels)
}

/// The rows of [`generate`] as `image: FixedSizeList<UInt8, 784>`, with `height` and `width` as the field's metadata,
/// and `label: Int64`.
pub fn record_batch(seed: u64, rows: usize) -> Result<RecordBatch, ArrowError> {
    let (images, labels) = generate(seed, rows);
    let item = Arc::new(Field::new_list_field(DataType::UInt8, true));
    let image = FixedSizeListArray::try_new(item, PIXELS as i32, Arc::new(UInt8Array::from(images)), None)?;
    let size = |name: &str| (name.to_owned(), SIDE.to_string());
    let schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), false).with_metadata([size("height"), size("width")].into()),
        Field::new("label", DataType::Int64, false),
    ]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(image), Arc::new(Int64Array::from(labels))])
}

/// A point: to the right, then down.
type Point = [f32; 2];

/// One movement of the pen, in a square from 0 to 1.
#[derive(Debug)]
enum Stroke {
    Lines(&'static [Point]),
    /// Part of an ellipse; degrees run clockwise from the right, as 90 is below.
    Arc {
        centre: Point,
        radii: Point,
        from: f32,
        to: f32,
    },
}

use Stroke::{Arc as Curve, Lines};

/// The ways to write a digit.
type Styles = &'static [&'static [Stroke]];

const fn curve(centre: Point, radii: Point, from: f32, to: f32) -> Stroke {
    Curve { centre, radii, from, to }
}

const DIGITS: [Styles; 10] = [
    &[&[curve([0.5, 0.5], [0.32, 0.5], 0.0, 360.0)], &[curve([0.5, 0.5], [0.22, 0.46], 0.0, 360.0)]],
    &[
        &[Lines(&[[0.5, 0.0], [0.5, 1.0]])],
        &[Lines(&[[0.32, 0.24], [0.54, 0.0], [0.54, 1.0]])],
        &[Lines(&[[0.3, 0.2], [0.5, 0.0], [0.5, 1.0]]), Lines(&[[0.28, 1.0], [0.74, 1.0]])],
    ],
    &[
        &[curve([0.5, 0.28], [0.3, 0.28], 190.0, 395.0), Lines(&[[0.746, 0.44], [0.2, 1.0], [0.84, 1.0]])],
        &[
            curve([0.48, 0.28], [0.26, 0.28], 200.0, 395.0),
            Lines(&[[0.693, 0.44], [0.24, 0.94], [0.36, 0.88], [0.6, 0.99], [0.86, 0.94]]),
        ],
    ],
    &[
        &[curve([0.48, 0.26], [0.27, 0.26], 200.0, 450.0), curve([0.48, 0.76], [0.32, 0.24], 270.0, 520.0)],
        &[Lines(&[[0.22, 0.0], [0.75, 0.0], [0.45, 0.42]]), curve([0.45, 0.71], [0.32, 0.29], 270.0, 520.0)],
    ],
    &[
        &[Lines(&[[0.65, 1.0], [0.65, 0.0], [0.18, 0.68], [0.86, 0.68]])],
        &[Lines(&[[0.28, 0.0], [0.22, 0.55], [0.82, 0.55]]), Lines(&[[0.7, 0.1], [0.66, 1.0]])],
    ],
    &[
        &[Lines(&[[0.76, 0.0], [0.3, 0.0], [0.268, 0.454]]), curve([0.48, 0.68], [0.3, 0.32], 225.0, 500.0)],
        &[
            Lines(&[[0.32, 0.06], [0.26, 0.46], [0.42, 0.4]]),
            curve([0.44, 0.7], [0.3, 0.3], 266.0, 510.0),
            Lines(&[[0.32, 0.06], [0.8, 0.0]]),
        ],
    ],
    &[
        &[
            Lines(&[[0.68, 0.02], [0.5, 0.14], [0.34, 0.36], [0.25, 0.58], [0.23, 0.72]]),
            curve([0.5, 0.72], [0.27, 0.28], 0.0, 360.0),
        ],
        &[curve([0.62, 0.7], [0.4, 0.7], 270.0, 180.0), curve([0.48, 0.72], [0.26, 0.26], 0.0, 360.0)],
    ],
    &[
        &[Lines(&[[0.2, 0.02], [0.8, 0.02], [0.42, 1.0]])],
        &[Lines(&[[0.2, 0.02], [0.8, 0.02], [0.42, 1.0]]), Lines(&[[0.36, 0.52], [0.76, 0.5]])],
        &[Lines(&[[0.2, 0.14], [0.22, 0.03], [0.8, 0.0], [0.58, 0.45], [0.48, 1.0]])],
    ],
    &[
        &[curve([0.5, 0.25], [0.24, 0.25], 0.0, 360.0), curve([0.5, 0.75], [0.29, 0.25], 0.0, 360.0)],
        &[curve([0.53, 0.21], [0.19, 0.21], 0.0, 360.0), curve([0.47, 0.71], [0.27, 0.29], 0.0, 360.0)],
    ],
    &[
        &[curve([0.5, 0.28], [0.27, 0.28], 0.0, 360.0), Lines(&[[0.77, 0.28], [0.72, 1.0]])],
        &[
            curve([0.5, 0.28], [0.26, 0.27], 0.0, 360.0),
            Lines(&[[0.76, 0.28], [0.76, 0.55], [0.62, 0.85], [0.36, 1.0]]),
        ],
    ],
];

/// One of `choices` and its index.
fn pick<'a, T>(choices: &'a [T], random: &mut ChaCha8Rng) -> (i64, &'a T) {
    let index = random.random_range(0..choices.len());
    (index as i64, &choices[index])
}

/// One image of `style`.
fn draw(style: &[Stroke], random: &mut ChaCha8Rng) -> [u8; PIXELS] {
    let place = Placement::new(random);
    let pen = Pen { radius: random.random_range(0.8..1.7), softness: random.random_range(0.7..1.9) };
    let mut ink = [0f32; PIXELS];
    for stroke in style {
        let points: Vec<Point> = stroke.points().into_iter().map(|point| place.pixel(point)).collect();
        for pair in points.windows(2) {
            pen.line(pair[0], pair[1], &mut ink);
        }
    }
    let bright = random.random_range(150.0..255.0f32);
    let noise = random.random_range(0.0..0.25f32);
    let mut grain = [0u8; 2 * PIXELS];
    random.fill_bytes(&mut grain);
    std::array::from_fn(|pixel| {
        // The sum of two bytes is nearer to a normal distribution than one.
        let grain = f32::from(grain[2 * pixel]) + f32::from(grain[2 * pixel + 1]) - 255.0;
        // The cast saturates.
        (ink[pixel] * bright + grain * noise) as u8
    })
}

impl Stroke {
    /// The stroke as a line through points close enough for bends to look smooth.
    fn points(&self) -> Vec<Point> {
        const PARTS: usize = 4;
        const DEGREES: f32 = 18.0;
        match *self {
            Lines(corners) => {
                let mut points: Vec<Point> = corners
                    .windows(2)
                    .flat_map(|pair| (0..PARTS).map(|part| between(pair[0], pair[1], part as f32 / PARTS as f32)))
                    .collect();
                points.extend(corners.last());
                points
            }
            Curve { centre, radii, from, to } => {
                let parts = ((to - from).abs() / DEGREES).ceil();
                (0..=parts as usize)
                    .map(|part| {
                        let (sin, cos) = (from + (to - from) * part as f32 / parts).to_radians().sin_cos();
                        [centre[0] + radii[0] * cos, centre[1] + radii[1] * sin]
                    })
                    .collect()
            }
        }
    }
}

fn between(a: Point, b: Point, share: f32) -> Point {
    [a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share]
}

/// Where a digit's square lies in its image, and how it is bent.
struct Placement {
    /// From the square, its middle at 0, to pixels.
    matrix: [Point; 2],
    middle: Point,
    /// How far waves through the square move its points: for each direction, size, waves per side and phase.
    waves: [[f32; 3]; 2],
}

impl Placement {
    fn new(random: &mut ChaCha8Rng) -> Self {
        let mut within = |limit: f32| random.random_range(-limit..limit);
        let (sin, cos) = within(0.3).sin_cos();
        let slant = within(0.4);
        let (width, height) = (19.0 + within(5.0), 18.5 + within(3.5));
        let middle = SIDE as f32 / 2.0 - 0.5;
        let mut wave = || [within(0.07), 0.9 + within(0.4), within(0.5)];
        let waves = [wave(), wave()];
        Self {
            // Size and slant first, then rotation.
            matrix: [
                [cos * width, cos * slant * height - sin * height],
                [sin * width, sin * slant * height + cos * height],
            ],
            middle: [middle + within(2.5), middle + within(2.5)],
            waves,
        }
    }

    /// The place in pixels of a point of the square.
    fn pixel(&self, [x, y]: Point) -> Point {
        let [across, down] =
            self.waves.map(|[size, count, phase]| move |along: f32| size * (TAU * (count * along + phase)).sin());
        let (x, y) = (x + across(y) - 0.5, y + down(x) - 0.5);
        [0, 1].map(|axis| self.middle[axis] + self.matrix[axis][0] * x + self.matrix[axis][1] * y)
    }
}

/// A round pen; lengths in pixels.
struct Pen {
    radius: f32,
    /// Width of the edge over which the ink fades.
    softness: f32,
}

impl Pen {
    /// Inks a line from `a` to `b`; ink is 0 to 1, and crossing lines do not add up.
    fn line(&self, a: Point, b: Point, ink: &mut [f32; PIXELS]) {
        let reach = self.radius + self.softness / 2.0;
        let range = |axis: usize| {
            let (low, high) = (a[axis].min(b[axis]) - reach, a[axis].max(b[axis]) + reach);
            // Casts saturate, so what lies outside of the image falls away.
            (low.ceil() as usize)..SIDE.min((high + 1.0).floor() as usize)
        };
        let along = [b[0] - a[0], b[1] - a[1]];
        let length = (along[0] * along[0] + along[1] * along[1]).max(f32::EPSILON);
        for y in range(1) {
            for x in range(0) {
                let from = [x as f32 - a[0], y as f32 - a[1]];
                let share = ((from[0] * along[0] + from[1] * along[1]) / length).clamp(0.0, 1.0);
                let distance = (from[0] - share * along[0]).hypot(from[1] - share * along[1]);
                let wet = ((self.radius - distance) / self.softness + 0.5).clamp(0.0, 1.0);
                let pixel = &mut ink[y * SIDE + x];
                *pixel = pixel.max(wet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_data_set() {
        let (images, labels) = generate(7, 300);
        assert_eq!((images.len(), labels.len()), (300 * PIXELS, 300));
        let (more_images, more_labels) = generate(7, 400);
        assert_eq!((&more_images[..images.len()], &more_labels[..300]), (&images[..], &labels[..]));
        assert_ne!(generate(8, 300), (images, labels));
    }

    #[test]
    fn every_digit_occurs_and_is_inked() {
        let (images, labels) = generate(0, 2_000);
        for digit in 0..10 {
            let count = labels.iter().filter(|&&label| label == digit).count();
            assert!((120..280).contains(&count), "{digit}: {count}");
        }
        for image in images.chunks_exact(PIXELS) {
            let inked = image.iter().filter(|&&pixel| pixel > 100).count();
            assert!((15..400).contains(&inked), "{inked}");
        }
    }

    #[test]
    fn the_nearest_mean_is_not_enough_but_better_than_chance() {
        let ((images, labels), (others, truth)) = (generate(1, 4_000), generate(2, 1_000));
        let mut means = vec![[0f32; PIXELS]; 10];
        let mut counts = [0f32; 10];
        for (image, &label) in images.chunks_exact(PIXELS).zip(&labels) {
            counts[label as usize] += 1.0;
            means[label as usize].iter_mut().zip(image).for_each(|(sum, &pixel)| *sum += f32::from(pixel));
        }
        for (mean, count) in means.iter_mut().zip(counts) {
            mean.iter_mut().for_each(|sum| *sum /= count);
        }
        let distance = |image: &[u8], mean: &[f32; PIXELS]| -> f32 {
            image.iter().zip(mean).map(|(&pixel, mean)| (f32::from(pixel) - mean).powi(2)).sum()
        };
        let right = others.chunks_exact(PIXELS).zip(truth).filter(|(image, label)| {
            let nearest = (0..10).min_by(|&a, &b| distance(image, &means[a]).total_cmp(&distance(image, &means[b])));
            nearest == usize::try_from(*label).ok()
        });
        let share = right.count() as f32 / 1_000.0;
        assert!((0.3..0.85).contains(&share), "{share}");
    }

    #[test]
    fn a_record_batch_has_the_same_rows() {
        let batch = record_batch(3, 20).unwrap();
        assert_eq!(batch.num_rows(), 20);
        assert_eq!(batch.schema().field(0).metadata()["height"], "28");
        let images = batch.column(0).as_any().downcast_ref::<FixedSizeListArray>().unwrap();
        let pixels = images.values().as_any().downcast_ref::<UInt8Array>().unwrap();
        let labels = batch.column(1).as_any().downcast_ref::<Int64Array>().unwrap();
        assert_eq!((pixels.values().to_vec(), labels.values().to_vec()), generate(3, 20));
    }
}
