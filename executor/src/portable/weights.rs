//! A safetensors file of weights, such as PyTorch's `state_dict`, on any object store: its header first, then each tensor
//! by ranged reads, as f32.
//!
//! f64, f16 and bf16 become f32. Tensors of integers and booleans are no weights: BatchNorm's `num_batches_tracked` is one,
//! which PyTorch itself does without when it is missing.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::Error;

/// A header above this is refused, as by the safetensors library.
const MAX_HEADER: u64 = 100 << 20;

/// Bytes of one request; a multiple of every element's size.
const CHUNK: u64 = 16 << 20;

/// A file whose header was read and found in order.
#[derive(Debug, Clone)]
pub struct Weights {
    store: Arc<dyn ObjectStore>,
    path: Path,
    address: String,
    /// By name.
    tensors: Vec<Tensor>,
    left_out: Vec<Tensor>,
}

/// One tensor of the file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Type of its elements as the file has them.
    pub dtype: Dtype,
    bytes: Range<u64>,
}

impl Tensor {
    /// Number of its elements.
    pub fn len(&self) -> usize {
        self.shape.iter().map(|n| usize::try_from(*n).unwrap_or(0)).product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of its element type as people write it.
    pub fn type_name(&self) -> String {
        format!("{:?}", self.dtype).to_lowercase()
    }
}

impl Weights {
    /// Reads the header of the file at `address`, a path or a URL, and compares it with the file's size.
    pub async fn open(address: &str) -> Result<Self, Error> {
        let (store, path, _) = tfos_data::store::resolve(address)?;
        let failed = |e| Error::Data(tfos_data::Error::from_store(e, address));
        let bad = |why: String| Error::Weights { address: address.to_owned(), why };
        let size = store.head(&path).await.map_err(failed)?.size;
        if size < 8 {
            return Err(bad(format!("it has {size} bytes and so no header; it is no safetensors file")));
        }
        let first = store.get_range(&path, 0..8).await.map_err(failed)?;
        let header = first.as_ref().try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        if header > MAX_HEADER || header > size - 8 {
            return Err(bad(
                "it does not begin as a safetensors file does; write it with safetensors.torch.save_file".into()
            ));
        }
        let text = store.get_range(&path, 8..8 + header).await.map_err(failed)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|e| bad(format!("its header is damaged: {e}")))?;
        let end = metadata.tensors().values().map(|t| t.data_offsets.1 as u64).max().unwrap_or(0);
        let wanted = 8 + header + end;
        if size != wanted {
            return Err(bad(format!("it has {size} bytes where its header promises {wanted}; it is not complete")));
        }
        let (mut tensors, mut left_out) = (vec![], vec![]);
        for (name, info) in metadata.tensors() {
            let at = |offset: usize| 8 + header + offset as u64;
            let bytes = at(info.data_offsets.0)..at(info.data_offsets.1);
            let shape = info.shape.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
            let tensor = Tensor { name, shape, dtype: info.dtype, bytes };
            match info.dtype {
                Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16 => tensors.push(tensor),
                Dtype::BOOL
                | Dtype::U8
                | Dtype::I8
                | Dtype::I16
                | Dtype::U16
                | Dtype::I32
                | Dtype::U32
                | Dtype::I64
                | Dtype::U64 => left_out.push(tensor),
                other => {
                    let (name, kind) = (&tensor.name, format!("{other:?}").to_lowercase());
                    return Err(bad(format!("`{name}` is {kind}; save it as f32, f64, f16 or bf16")));
                }
            }
        }
        if tensors.is_empty() {
            return Err(bad("it has no tensor of floats".into()));
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        left_out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { store, path, address: address.to_owned(), tensors, left_out })
    }

    /// The weights, by name.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// What the file has beside them, by name: integers and booleans.
    pub fn left_out(&self) -> &[Tensor] {
        &self.left_out
    }

    /// One tensor whole.
    pub async fn read(&self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        let mut all = Vec::with_capacity(tensor.len());
        for piece in pieces(tensor) {
            all.extend(self.read_piece(tensor, piece).await?);
        }
        Ok(all)
    }

    /// The elements in some bytes of the file, which are those of [`pieces`].
    pub(super) async fn read_piece(&self, tensor: &Tensor, bytes: Range<u64>) -> Result<Vec<f32>, Error> {
        let wanted = bytes.end - bytes.start;
        let got = self.store.get_range(&self.path, bytes).await;
        let got = got.map_err(|e| Error::Data(tfos_data::Error::from_store(e, &self.address)))?;
        let bad = |why: String| Error::Weights { address: self.address.clone(), why };
        if got.len() as u64 != wanted {
            return Err(bad("it has become shorter while it was read".into()));
        }
        floats(tensor.dtype, &got)
            .ok_or_else(|| bad(format!("`{}` has a value that is too large for f32", tensor.name)))
    }
}

/// Byte ranges that together are the tensor, each small enough for one request.
pub(super) fn pieces(tensor: &Tensor) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = tensor.bytes;
    (start..end).step_by(CHUNK as usize).map(move |at| at..(at + CHUNK).min(end))
}

/// Little-endian elements as f32; `None` if a finite f64 is none there.
fn floats(dtype: Dtype, bytes: &Bytes) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|raw| of(*raw)).collect()
    }
    match dtype {
        Dtype::F32 => Some(each(bytes, f32::from_le_bytes)),
        Dtype::F16 => Some(each(bytes, |raw| half::f16::from_le_bytes(raw).to_f32())),
        Dtype::BF16 => Some(each(bytes, |raw| half::bf16::from_le_bytes(raw).to_f32())),
        Dtype::F64 => {
            let narrow = |raw| {
                let wide = f64::from_le_bytes(raw);
                let value = wide as f32;
                (value.is_finite() || !wide.is_finite()).then_some(value)
            };
            bytes.as_chunks::<8>().0.iter().map(|raw| narrow(*raw)).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(n, d, s, bytes)| (*n, TensorView::new(*d, s.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    async fn open(bytes: &[u8]) -> Result<Weights, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, bytes).unwrap();
        // The folder may go: only the header is looked at here.
        Weights::open(path.to_str().unwrap()).await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn every_float_type_becomes_f32_and_integers_are_left_out() {
        let values = [1.5f32, -0.25, 0.0];
        let bytes = |each: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|v| each(*v)).collect::<Vec<u8>>();
        let tensors = [
            ("a", Dtype::F32, vec![3], bytes(&|v| v.to_le_bytes().to_vec())),
            ("b", Dtype::F64, vec![3], bytes(&|v| f64::from(v).to_le_bytes().to_vec())),
            ("c.half", Dtype::F16, vec![3, 1], bytes(&|v| half::f16::from_f32(v).to_le_bytes().to_vec())),
            ("d", Dtype::BF16, vec![1, 3], bytes(&|v| half::bf16::from_f32(v).to_le_bytes().to_vec())),
            ("n", Dtype::I64, vec![], 7i64.to_le_bytes().to_vec()),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, file(&tensors)).unwrap();
        let weights = Weights::open(path.to_str().unwrap()).await.unwrap();
        let names: Vec<&str> = weights.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c.half", "d"]);
        assert_eq!(weights.left_out().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["n"]);
        assert_eq!(weights.tensors()[2].shape, [3, 1]);
        for tensor in weights.tensors() {
            assert_eq!(weights.read(tensor).await.unwrap(), values, "{}", tensor.name);
        }
    }

    #[tokio::test]
    async fn large_tensors_are_read_in_pieces_and_too_large_values_are_named() {
        let n = (CHUNK / 8) as usize + 3;
        let mut values: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let raw = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, file(&[("big", Dtype::F64, vec![n], raw(&values))])).unwrap();
        let weights = Weights::open(path.to_str().unwrap()).await.unwrap();
        assert_eq!(pieces(&weights.tensors()[0]).count(), 2);
        let read = weights.read(&weights.tensors()[0]).await.unwrap();
        assert!(read.iter().enumerate().all(|(i, v)| *v == i as f32) && read.len() == n);
        values[n - 1] = 1e300;
        std::fs::write(&path, file(&[("big", Dtype::F64, vec![n], raw(&values))])).unwrap();
        let error = weights.read(&weights.tensors()[0]).await.unwrap_err().to_string();
        assert!(error.contains("`big`") && error.contains("too large"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_whole_file_of_weights_is_refused() {
        let good = file(&[("a", Dtype::F32, vec![2], vec![0; 8])]);
        assert!(open(&good).await.is_ok());
        for (bytes, words) in [
            (&good[..5], "no header"),
            (&good[..good.len() - 1], "not complete"),
            (&[good.as_slice(), b"x"].concat()[..], "not complete"),
            (b"PK\x03\x04 is the beginning of a zip archive".as_slice(), "safetensors.torch.save_file"),
            (&[&4u64.to_le_bytes()[..], b"oops"].concat()[..], "header is damaged"),
            (&file(&[("n", Dtype::I64, vec![1], vec![0; 8])])[..], "no tensor of floats"),
            (&file(&[("q", Dtype::F8_E4M3, vec![1], vec![0])])[..], "`q` is f8_e4m3"),
        ] {
            let error = open(bytes).await.unwrap_err();
            assert!(error.contains(words) && error.contains("w.safetensors"), "{words}: {error}");
        }
        let error = Weights::open("/no/such/w.safetensors").await.unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
    }
}
