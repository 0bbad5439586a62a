//! The control plane's wire messages, generated from `proto/tfos/control/control.proto`.
//! They stop at `server.rs` and `client.rs` of driver and executor, which turn them into Rust types.
#![expect(clippy::allow_attributes, reason = "generated code")]

use std::num::NonZeroU32;

use crate::rows;

tonic::include_proto!("tfos.control");

impl From<rows::Shuffle> for Shuffle {
    fn from(shuffle: rows::Shuffle) -> Self {
        Self { seed: shuffle.seed, block_rows: shuffle.block_rows.get() }
    }
}

impl Input {
    /// How its rows are shuffled, if they are.
    pub fn row_shuffle(&self) -> Option<rows::Shuffle> {
        let wire = self.shuffle.as_ref()?;
        NonZeroU32::new(wire.block_rows).map(|block_rows| rows::Shuffle { seed: wire.seed, block_rows })
    }

    /// As bytes for [`Self::from_bytes`] of the same version.
    pub fn to_bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// From bytes of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        prost::Message::decode(bytes).ok()
    }
}

/// One control message may carry a plan over many thousand files.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Executors of another protocol version are refused at registration.
pub const PROTOCOL_VERSION: u32 = 1;
