//! Models that leave tfos and models that come in, as files that PyTorch reads and writes.

pub(crate) mod import;
