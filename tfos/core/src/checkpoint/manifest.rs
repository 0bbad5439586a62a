//! The manifest: what a checkpoint consists of. JSON, so that it can be read without tfos.

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, GlobalStep};
use crate::rows::CommittedRows;

/// Version of the manifest's format.
pub const FORMAT: u32 = 1;

/// Checksums of the blocks of a file: whoever needs a range of it reads the blocks that hold it, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// Bytes of each block but the last, which may be shorter.
    pub bytes: u64,
    /// CRC-32C of each block, in order.
    pub crc32c: Vec<u32>,
}

/// One safetensors file of a checkpoint: elements `start..end` of the model's flat vector of trainable
/// variables (in order of their names), the same range of every optimizer slot, and in one part the
/// non-trainable buffers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Path relative to the model directory.
    pub path: String,
    /// Size of the file.
    pub bytes: u64,
    /// CRC-32C of the file.
    pub crc32c: u32,
    /// First element.
    pub start: u64,
    /// One past the last element.
    pub end: u64,
    /// Absent in manifests of programs that did not write them: then the file is read whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
}

/// A committed checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub tfos_version: String,
    /// Application whose model it is.
    pub application: String,
    /// Incarnation that wrote it.
    pub generation: Generation,
    /// Updates applied to the parameters.
    pub global_step: GlobalStep,
    /// Variables: name, shape and offset in the flat vector; see the `ps` crate's layout.
    pub layout: serde_json::Value,
    /// Optimizer and its settings; null where there is none: weights that came from elsewhere, which a model finds by name.
    pub optimizer: serde_json::Value,
    /// Updates counted by the optimizer (its bias correction depends on them).
    pub optimizer_step: u64,
    /// The files.
    pub parts: Vec<Part>,
    /// Identity of the training input (files and query), to refuse a resume on other data.
    pub input_fingerprint: String,
    /// Rows that these parameters have seen.
    pub rows: CommittedRows,
    /// Rows applied so far, over all epochs.
    pub rows_total: u64,
    /// Segments of the commit log in this checkpoint's lineage, oldest first.
    pub ledger: Vec<String>,
    /// Arguments with which the nodes built the model, JSON: whoever builds it elsewhere needs them.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub arguments: serde_json::Value,
    /// Columns of the rows that it was trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
}

/// A column of the training rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type, as text.
    #[serde(rename = "type")]
    pub data_type: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this shape.
    #[error("manifest `{path}` cannot be read")]
    Malformed {
        /// Path of the manifest.
        path: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer program.
    #[error("manifest `{path}` has format {found}, this program reads format {FORMAT}; use a newer tfos")]
    Format {
        /// Path of the manifest.
        path: String,
        /// Its format.
        found: u32,
    },
    /// The parts leave elements out or hold some twice.
    #[error("manifest `{path}` does not cover the model: element {at} is in no part or in two")]
    Coverage {
        /// Path of the manifest.
        path: String,
        /// First element in question.
        at: u64,
    },
}

impl Manifest {
    /// Whether rows have been trained on. Weights that were imported have seen none, so any data may come.
    pub fn has_seen_data(&self) -> bool {
        self.rows_total > 0 || !self.input_fingerprint.is_empty()
    }

    /// Whether it has an optimizer's state, and a layout that is a model's own.
    pub fn is_weights_only(&self) -> bool {
        self.optimizer.is_null()
    }

    /// Reads and checks a manifest.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |source| ManifestError::Malformed { path: path.to_owned(), source };
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.format != FORMAT {
            return Err(ManifestError::Format { path: path.to_owned(), found: version.format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        let mut parts: Vec<&Part> = manifest.parts.iter().collect();
        // An empty part, of a ps that holds nothing of a small model, begins where the next one does.
        parts.sort_by_key(|p| (p.start, p.end));
        let mut at = 0;
        for part in parts {
            if part.start != at || part.end < part.start {
                return Err(ManifestError::Coverage { path: path.to_owned(), at });
            }
            at = part.end;
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(parts: &[(u64, u64)]) -> Result<Manifest, ManifestError> {
        let part = |&(start, end)| Part { path: format!("{start}"), bytes: 0, crc32c: 0, start, end, blocks: None };
        let manifest = Manifest {
            format: FORMAT,
            tfos_version: String::new(),
            application: String::new(),
            generation: Generation(1),
            global_step: GlobalStep(1),
            layout: serde_json::Value::Null,
            optimizer: serde_json::Value::Null,
            optimizer_step: 1,
            parts: parts.iter().map(part).collect(),
            input_fingerprint: String::new(),
            rows: CommittedRows::default(),
            rows_total: 0,
            ledger: vec![],
            arguments: serde_json::Value::Null,
            columns: vec![],
        };
        Manifest::parse("m", &serde_json::to_vec(&manifest).unwrap())
    }

    #[test]
    fn parts_cover_the_model_once_in_any_order() {
        assert!(manifest(&[(0, 2)]).is_ok());
        assert!(manifest(&[(16, 20), (0, 16)]).is_ok());
        // A model smaller than its number of ps: some hold nothing.
        assert!(manifest(&[(0, 2), (0, 0)]).is_ok());
        assert!(manifest(&[(0, 2), (2, 2), (0, 0)]).is_ok());
        for bad in [&[(1, 2)][..], &[(0, 2), (3, 4)], &[(0, 2), (1, 4)], &[(0, 2), (0, 2)]] {
            assert!(matches!(manifest(bad), Err(ManifestError::Coverage { .. })), "{bad:?}");
        }
    }
}
