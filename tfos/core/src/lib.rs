//! The vocabulary of tfos: ids, roles, configuration, errors, wire messages, and the pure protocols
//! of leases, commits and checkpoints. Nothing here does I/O, reads a clock or draws a random number.

pub mod checkpoint;
pub mod cluster;
pub mod config;
pub mod failure;
pub mod gpu;
pub mod ids;
pub mod ports;
pub mod proto;
pub mod rows;
