//! libFuzzer on whole TFRecord files.
#![no_main]

use tfos_fuzz::{Meter, seeds, targets};

#[global_allocator]
static METER: Meter = Meter;

libfuzzer_sys::fuzz_target!(init: seeds::write("tfrecord"), |data: &[u8]| targets::metered(targets::tfrecord, data));
