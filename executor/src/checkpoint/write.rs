//! Writes a part behind training: piece by piece, with bounded memory, and again when the store did not take it.
//!
//! - `CKP-5` a part that is reported is durable: on a file system it has reached the disk, name and all.

use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use tokio::sync::{mpsc, oneshot};

use super::blocks::BlockCrc;
use super::encode::Content;
use super::unbuffered::Unbuffered;
use super::{CheckpointStore, Written, cannot};
use crate::Error;

/// Bytes that are still in the core's cache when they are copied after their checksum was taken.
const IN_CACHE: usize = 256 << 10;

/// Files above this size go up in several requests.
const MULTIPART_BYTES: u64 = 64 << 20;

/// Least bytes of a request; S3 takes ten thousand of them.
const REQUEST_BYTES: u64 = 16 << 20;
const REQUESTS: u64 = 9_000;

/// Requests under way.
const CONCURRENCY: usize = 4;

/// Tries of a part, and the pause after the first that failed; it doubles. Below them the store's client repeats single
/// requests by itself.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl CheckpointStore {
    /// Writes one part. Nothing of it is visible under its name unless all of it is.
    pub(crate) async fn write_part(&self, path: &str, content: &Content) -> Result<Written, Error> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let error = match self.try_part(path, content).await {
                Ok(written) => return Ok(written),
                Err(error) => error,
            };
            if attempt == TRIES || !is_temporary(&error) {
                return Err(error);
            }
            let why = tfos_core::failure::chain(&error).join(": ");
            tracing::warn!("{why}; trying again in {} s, training goes on", pause.as_secs());
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(cannot(path, "written", "no attempt was made"))
    }

    /// Removes what a dead process has left of a part on a file system.
    pub(crate) fn remove_unfinished(&self, path: &str) {
        let Some(target) = self.local.as_ref().map(|root| root.join(path)) else { return };
        for number in 1.. {
            // Numbers are given from 1 on without gaps.
            if std::fs::remove_file(beside(&target, number)).is_err() {
                return;
            }
        }
    }

    async fn try_part(&self, path: &str, content: &Content) -> Result<Written, Error> {
        match &self.local {
            Some(root) => {
                let (target, content, name) = (root.join(path), content.clone(), path.to_owned());
                behind(path, move || to_file(&target, &content, &name)).await?
            }
            None => to_store(&self.store, &self.path(path), content, path).await,
        }
    }
}

/// Whether another try may help: not when the store says that it is not allowed, or not there.
fn is_temporary(error: &Error) -> bool {
    use object_store::Error as Store;
    let Error::Checkpoint { source, .. } = error else { return false };
    match source.downcast_ref::<Store>() {
        Some(error) => !matches!(
            error,
            Store::PermissionDenied { .. }
                | Store::Unauthenticated { .. }
                | Store::NotFound { .. }
                | Store::InvalidPath { .. }
                | Store::NotSupported { .. }
                | Store::NotImplemented { .. }
                | Store::UnknownConfigurationKey { .. }
        ),
        None => source.downcast_ref::<std::io::Error>().is_some_and(|e| {
            use std::io::ErrorKind as Kind;
            matches!(e.kind(), Kind::Interrupted | Kind::TimedOut | Kind::ResourceBusy | Kind::StaleNetworkFileHandle)
        }),
    }
}

/// A file of its own beside the target, which takes the target's name when it is on the disk.
fn to_file(target: &FilePath, content: &Content, name: &str) -> Result<Written, Error> {
    let io = |e: std::io::Error| cannot(name, "written", e);
    let folder = target.parent().unwrap_or(target);
    std::fs::create_dir_all(folder).map_err(io)?;
    let (file, staged) = create_beside(target).map_err(io)?;
    let written = fill(file, content, name).and_then(|written| {
        std::fs::rename(&staged, target).map_err(io)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(written)
    });
    if written.is_err() {
        // What is left is garbage that `gc` knows; the first error is the one to tell.
        let _ = std::fs::remove_file(&staged);
    }
    written
}

/// Named as object_store names what it has not finished on a file system, so that one clean-up knows both.
fn beside(target: &FilePath, number: u32) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!("#{number}"));
    PathBuf::from(name)
}

fn create_beside(target: &FilePath) -> std::io::Result<(File, PathBuf)> {
    let mut number = 1u32;
    loop {
        let staged = beside(target, number);
        match File::options().write(true).create_new(true).open(&staged) {
            Ok(file) => return Ok((file, staged)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Writes all of it to the disk.
fn fill(file: File, content: &Content, name: &str) -> Result<Written, Error> {
    let io = |e: std::io::Error| cannot(name, "written", e);
    let mut file = Unbuffered::new(file, content.bytes()).map_err(io)?;
    let mut crc = BlockCrc::new();
    for piece in content.pieces() {
        for bytes in piece?.chunks(IN_CACHE) {
            crc.update(bytes);
            file.write(bytes).map_err(io)?;
        }
    }
    file.finish().map_err(io)?;
    Ok(crc.written())
}

async fn to_store(
    store: &Arc<dyn ObjectStore>,
    target: &Path,
    content: &Content,
    name: &str,
) -> Result<Written, Error> {
    let failed = |e: object_store::Error| cannot(name, "written", e);
    let bytes = content.bytes();
    // Pieces may have to wait for memory, and checksums take their time: not on the threads of the runtime.
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes, Error>>(2);
    let content = content.clone();
    let reader = behind(name, move || {
        let mut crc = BlockCrc::new();
        for piece in content.pieces() {
            if let Ok(piece) = &piece {
                crc.update(piece);
            }
            if sender.blocking_send(piece).is_err() {
                break;
            }
        }
        crc.written()
    });
    if bytes <= MULTIPART_BYTES {
        let mut all = vec![];
        while let Some(piece) = pieces.recv().await {
            all.push(piece?);
        }
        store.put(target, all.into_iter().collect::<PutPayload>()).await.map_err(failed)?;
    } else {
        let upload = store.put_multipart(target).await.map_err(failed)?;
        let request = bytes.div_ceil(REQUESTS).max(REQUEST_BYTES) as usize;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, request);
        let sent = async {
            while let Some(piece) = pieces.recv().await {
                writer.wait_for_capacity(CONCURRENCY).await.map_err(failed)?;
                writer.put(piece?);
            }
            Ok(())
        };
        let sent: Result<(), Error> = sent.await;
        match sent {
            Ok(()) => drop(writer.finish().await.map_err(failed)?),
            Err(error) => {
                // The first error is the one to tell; requests that stay behind are the store's to clean up.
                let _ = writer.abort().await;
                return Err(error);
            }
        }
    }
    reader.await
}

/// Does work on a thread that gives way to training.
fn behind<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Error>> {
    let (done, result) = oneshot::channel();
    let begun = tfos_ps::background::spawn("checkpoint", move || {
        let _ = done.send(work());
    });
    async move {
        begun.map_err(|e| cannot(name, "written", e))?;
        result.await.map_err(|e| cannot(name, "written", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfos_ps::memory::{Arena, Cut};
    use tfos_ps::{Layout, Snapshot};

    fn content(elements: usize) -> Content {
        let arena = Arena::new().unwrap();
        let layout = Layout::new([("w".into(), vec![elements as i64])], []).unwrap();
        let values: Vec<f32> = (0..elements).map(|i| i as f32).collect();
        let cut = || Cut::of(&arena, &values).unwrap();
        let slots = vec![("sum".into(), cut())];
        let snapshot =
            Snapshot { id: 1, step: 7, optimizer_step: 7, range: 0..elements, params: cut(), slots, buffers: None };
        Content::new(&layout, snapshot).unwrap()
    }

    fn names(folder: &FilePath) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test] // CKP-5
    async fn a_part_is_whole_under_its_name_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path().to_str().unwrap()).unwrap();
        let content = content(3_000_000);
        // What a dead process left is not in the way.
        std::fs::create_dir(folder.path().join("c")).unwrap();
        std::fs::write(folder.path().join("c/part#1"), "half").unwrap();
        let written = store.write_part("c/part", &content).await.unwrap();
        let file = std::fs::read(folder.path().join("c/part")).unwrap();
        assert_eq!((written.bytes, written.crc32c), (file.len() as u64, crc32c::crc32c(&file)));
        assert_eq!(written.bytes, content.bytes());
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(tensors.tensor("optimizer/sum/w").unwrap().data()[4..8], 1.0f32.to_le_bytes());
        store.remove_unfinished("c/part");
        assert_eq!(names(&folder.path().join("c")), ["part"]);
        // A folder in its place: the name cannot be given, and nothing is left.
        std::fs::create_dir_all(folder.path().join("d/part/x")).unwrap();
        let error = store.write_part("d/part", &content).await.unwrap_err();
        assert!(error.to_string().contains("d/part"), "{error}");
        assert_eq!(names(&folder.path().join("d")), ["part"]);
    }

    #[test]
    fn what_the_store_forbids_is_not_tried_again() {
        use object_store::Error as Store;
        let source = || Box::new(std::io::Error::other("x"));
        let failed = |e: Store| cannot("p", "written", e);
        assert!(is_temporary(&failed(Store::Generic { store: "S3", source: source() })));
        assert!(!is_temporary(&failed(Store::PermissionDenied { path: "p".into(), source: source() })));
        assert!(!is_temporary(&cannot("p", "written", std::io::Error::from(std::io::ErrorKind::StorageFull))));
    }
}
