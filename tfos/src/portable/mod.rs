//! Models that leave tfos and models that come in, as files that PyTorch reads and writes.

pub(crate) mod export;
pub(crate) mod folder;
pub(crate) mod import;
#[cfg(test)]
mod tests;
pub(crate) mod unpack;
