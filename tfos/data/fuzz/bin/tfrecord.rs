//! libFuzzer on whole TFRecord files.
#![no_main]

use tfos_fuzz::{Meter, targets};

#[global_allocator]
static METER: Meter = Meter;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::metered(targets::tfrecord, data));
