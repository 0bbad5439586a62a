//! Checksums of what a checkpoint holds, equal for equal bits however it is divided into files.

use serde::Serialize;
use tfos_core::checkpoint::Manifest;
use tfos_executor::checkpoint::{Checkpoint, CheckpointStore};
use tfos_executor::ps::Variable;

use crate::Result;

/// CRC-32C over the values as little-endian `f32`, in the order of the variables' names: wherever they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Digest {
    /// Trained variables.
    pub(crate) parameters_crc32c: u32,
    /// Variables that no gradient reaches, such as running means.
    pub(crate) buffers_crc32c: u32,
    /// The optimizer's slots, one after the other.
    pub(crate) optimizer_crc32c: u32,
}

/// Reads the whole checkpoint.
pub(crate) async fn digest(model_dir: &str, manifest: &Manifest) -> Result<Digest> {
    let Checkpoint { layout, state, .. } = CheckpointStore::open(model_dir)?.load(manifest).await?;
    let mut variables: Vec<_> = layout.variables.iter().collect();
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    let by_name = |crc: u32, values: &[f32]| {
        let of = |v: &Variable| values.get(v.offset..v.offset + v.len()).unwrap_or_default();
        variables.iter().fold(crc, |crc, v| append(crc, of(v)))
    };
    Ok(Digest {
        parameters_crc32c: by_name(0, &state.params),
        buffers_crc32c: append(0, &state.buffers),
        optimizer_crc32c: state.slots.iter().fold(0, |crc, (_, slot)| by_name(crc, slot)),
    })
}

fn append(crc: u32, values: &[f32]) -> u32 {
    values.chunks(1024).fold(crc, |crc, chunk| {
        let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
        crc32c::crc32c_append(crc, &bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_bytes_and_tells_zeros_apart() {
        let values: Vec<f32> = (0..3000).map(|i| i as f32 * 0.1).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(append(0, &values), crc32c::crc32c(&bytes));
        assert_eq!(append(append(0, &values[..7]), &values[7..]), append(0, &values));
        assert_ne!(append(0, &[0.0]), append(0, &[-0.0]));
    }
}
