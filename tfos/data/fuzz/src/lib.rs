//! Hostile bytes for the decoders of `tfos-data`: what libFuzzer calls, and plain tests too.
//!
//! `FUZ-1`: no bytes make a decoder panic, and none make it allocate by a length that they claim: memory is bounded by
//! the bytes that really arrive.
//!
//! `deploy/fuzz` builds the targets with coverage and runs them. What it finds goes to `found/TARGET/`, where the
//! tests of every build read it again.

pub mod memory;
pub mod seeds;
pub mod targets;

pub use memory::Meter;
