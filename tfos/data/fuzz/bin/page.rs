//! libFuzzer on pages of Parquet columns.
#![no_main]

use tfos_fuzz::{Meter, seeds, targets};

#[global_allocator]
static METER: Meter = Meter;

libfuzzer_sys::fuzz_target!(init: seeds::write("page"), |data: &[u8]| targets::metered(targets::page, data));
