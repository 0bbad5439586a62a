//! A model directory on a store that lists nothing written since it was opened: claims, starts and the newest checkpoint
//! are found all the same.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as Stored,
};
use tfos_core::checkpoint::{FORMAT, Manifest};
use tfos_core::rows::CommittedRows;

use super::*;

/// Shows in listings only what was listed when it was made.
#[derive(Debug)]
struct Lagging {
    inner: Arc<dyn ObjectStore>,
    shown: BTreeSet<Path>,
}

impl fmt::Display for Lagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lagging {}", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Lagging {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Stored<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Stored<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Stored<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Stored<Path>>) -> BoxStream<'static, Stored<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Stored<ObjectMeta>> {
        let shown = self.shown.clone();
        let is_shown = move |meta: &Stored<ObjectMeta>| meta.as_ref().is_ok_and(|m| shown.contains(&m.location));
        self.inner.list(prefix).filter(move |meta| std::future::ready(is_shown(meta))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Stored<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects.retain(|meta| self.shown.contains(&meta.location));
        listed.common_prefixes.retain(|folder| self.shown.iter().any(|path| path.prefix_matches(folder)));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Stored<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The directory as a listing will show it from now on.
async fn frozen(dir: &ModelDir) -> ModelDir {
    let root = Path::from_absolute_path(dir.local_path().unwrap()).unwrap();
    let all: Vec<Stored<ObjectMeta>> = dir.store().list(Some(&root)).collect().await;
    let shown = all.into_iter().filter_map(|meta| Some(meta.ok()?.location)).collect();
    dir.through(Arc::new(Lagging { inner: Arc::clone(dir.store()), shown }))
}

async fn commit(dir: &ModelDir, step: u64, generation: Generation) {
    let manifest = Manifest {
        format: FORMAT,
        tfos_version: "0".into(),
        application: "a".into(),
        generation,
        global_step: GlobalStep(step),
        layout: serde_json::Value::Null,
        optimizer: serde_json::Value::Null,
        optimizer_step: step,
        parts: vec![],
        input_fingerprint: "f".into(),
        rows: CommittedRows::default(),
        rows_total: 0,
        ledger: vec![],
        arguments: serde_json::Value::Null,
        columns: vec![],
    };
    dir.note_newest(generation, [GlobalStep(step), GlobalStep(step - 10)]).await.unwrap();
    assert!(dir.commit(&manifest, false, None).await.unwrap());
}

#[tokio::test] // CKP-3
async fn claims_starts_and_the_newest_checkpoint_are_found_before_they_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("job")).unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let first = dir.claim_generation("").await.unwrap();
    dir.begin(first, None).await.unwrap();
    commit(&dir, 10, first).await;
    let dir = frozen(&dir).await;
    commit(&dir, 20, first).await;
    assert!(dir.names(Paths::CHECKPOINTS).await.unwrap() == ["000000000010"], "the listing lags");
    // The next driver, and one after it, see the claims before them and the checkpoint.
    for (generation, step) in [(2, 20), (3, 30), (4, 30)] {
        let claimed = dir.claim_generation("").await.unwrap();
        assert_eq!(claimed, Generation(generation));
        let (restored, target) = dir.find_checkpoint().await.unwrap();
        assert_eq!((target.restore, target.skipped.len()), (Some(GlobalStep(step)), 0));
        dir.begin(claimed, restored.as_ref()).await.unwrap();
        if generation == 2 {
            commit(&dir, 30, claimed).await;
        }
    }
    // The first one is fenced by claims that no listing shows, and what it wrote late is void.
    let starts = dir.starts(Generation(0)).await.unwrap();
    assert_eq!(starts.newest(), Some(Generation(4)));
    assert!(starts.is_void(GlobalStep(25), first) && !starts.is_void(GlobalStep(20), first));
    let listed = dir.list_checkpoints().await.unwrap();
    assert_eq!(listed.iter().map(|c| c.step.0).collect::<Vec<_>>(), [10, 20, 30]);
    // A driver that dies between its note and its manifest leaves the checkpoint before.
    dir.note_newest(Generation(4), [GlobalStep(40), GlobalStep(30)]).await.unwrap();
    assert_eq!(dir.find_checkpoint().await.unwrap().1.restore, Some(GlobalStep(30)));
}
