//! The control plane's wire messages, generated from `proto/tfos/control/control.proto`.
//! They stop at `server.rs` and `client.rs` of driver and executor, which turn them into Rust types.
#![expect(clippy::allow_attributes, reason = "generated code")]

tonic::include_proto!("tfos.control");

/// One control message may carry a plan over many thousand files.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Executors of another protocol version are refused at registration.
pub const PROTOCOL_VERSION: u32 = 1;
