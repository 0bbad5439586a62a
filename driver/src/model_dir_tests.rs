//! Tests of the model directory on a real file system.

use super::*;
use tfos_core::rows::CommittedRows;

fn open() -> (tempfile::TempDir, ModelDir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().join("model").display().to_string()).unwrap();
    (folder, dir)
}

fn keep(newest: usize) -> Retention {
    Retention { newest, every: None, best: None }
}

/// A checkpoint of one part at `step`, committed by `generation`.
async fn checkpoint(dir: &ModelDir, step: u64, generation: u64) -> Result<bool, Error> {
    let (step, generation) = (GlobalStep(step), Generation(generation));
    let path = Paths::part(step, generation, 0, 1);
    let bytes = format!("parameters at step {step}").into_bytes();
    let part = Part {
        path: path.clone(),
        bytes: bytes.len() as u64,
        crc32c: crc32c::crc32c(&bytes),
        start: 0,
        end: 1,
        blocks: None,
    };
    dir.store().put(&dir.path(&path), PutPayload::from(bytes)).await.unwrap();
    let manifest = Manifest {
        format: tfos_core::checkpoint::FORMAT,
        tfos_version: "0".into(),
        application: "a".into(),
        generation,
        global_step: step,
        layout: serde_json::Value::Null,
        optimizer: serde_json::Value::Null,
        optimizer_step: step.0,
        parts: vec![part],
        input_fingerprint: "f".into(),
        rows: CommittedRows::default(),
        rows_total: 0,
        ledger: vec![],
        arguments: serde_json::Value::Null,
        columns: vec![],
    };
    dir.commit(&manifest, false, None).await
}

#[tokio::test] // CKP-3
async fn an_older_generation_cannot_commit() {
    let (_folder, dir) = open();
    let old = dir.claim_generation("first").await.unwrap();
    assert!(checkpoint(&dir, 10, old.0).await.unwrap());
    let new = dir.claim_generation("second").await.unwrap();
    assert_eq!((old, new), (Generation(1), Generation(2)));
    let fenced = checkpoint(&dir, 20, old.0).await.unwrap_err();
    assert!(matches!(fenced, Error::Fenced { mine: 1, newest: 2, .. }), "{fenced}");
    assert_eq!(dir.find_checkpoint().await.unwrap().1.restore, Some(GlobalStep(10)));
    assert!(checkpoint(&dir, 20, new.0).await.unwrap());
    assert!(checkpoint(&dir, 20, new.0).await.unwrap(), "a request that was sent twice has succeeded");
    let path = dir.path(&Paths::manifest(GlobalStep(30)));
    dir.store().put(&path, PutPayload::from_static(b"somebody else's")).await.unwrap();
    let taken = checkpoint(&dir, 30, new.0).await.unwrap_err();
    assert!(taken.to_string().contains("another driver wrote"), "a manifest is created once: {taken}");
}

#[tokio::test] // CKP-3: it looked at the claims before the newer generation came, and writes after it has started
async fn a_late_manifest_of_an_older_generation_is_void() {
    let (_folder, dir) = open();
    let old = dir.claim_generation("first").await.unwrap();
    dir.begin(old, None).await.unwrap();
    assert!(checkpoint(&dir, 10, old.0).await.unwrap());
    // As it was before the newer one came; the other model directory knows of no claims.
    let (_other, elsewhere) = open();
    let late = async |step: u64| {
        checkpoint(&elsewhere, step, old.0).await.unwrap();
        for file in elsewhere.files(&Paths::checkpoint(GlobalStep(step))).await.unwrap() {
            let bytes = elsewhere.read(&file).await.unwrap().unwrap();
            dir.store().put(&dir.path(&file), bytes.into()).await.unwrap();
        }
    };
    let new = dir.claim_generation("second").await.unwrap();
    let (restored, target) = dir.find_checkpoint().await.unwrap();
    assert_eq!(target.restore, Some(GlobalStep(10)));
    dir.begin(new, restored.as_ref()).await.unwrap();
    for step in [20, 30] {
        late(step).await;
    }
    let (_, target) = dir.find_checkpoint().await.unwrap();
    assert_eq!((target.restore, target.skipped.len()), (Some(GlobalStep(10)), 2));
    assert!(target.skipped[0].damage.as_ref().unwrap().contains("generation 1 wrote it after"));
    let listed = dir.list_checkpoints().await.unwrap();
    assert_eq!(listed.iter().map(|c| c.manifest.is_ok()).collect::<Vec<_>>(), [true, false, false]);
    assert!(checkpoint(&dir, 20, new.0).await.unwrap(), "its step is free for the newer one");
    let (restored, target) = dir.find_checkpoint().await.unwrap();
    assert_eq!((target.restore, restored.unwrap().manifest.generation), (Some(GlobalStep(20)), new));
    // What is void neither counts as a checkpoint to keep nor pushes one out.
    dir.retain(&keep(1), &BTreeMap::new(), |step| step <= GlobalStep(20)).await.unwrap();
    assert_eq!(dir.find_checkpoint().await.unwrap().1.restore, Some(GlobalStep(20)));
    let third = dir.claim_generation("third").await.unwrap();
    dir.begin(new, None).await.unwrap_err();
    let (restored, target) = dir.find_checkpoint().await.unwrap();
    dir.begin(third, restored.as_ref()).await.unwrap();
    dir.set_aside(&target.skipped, third).await.unwrap();
    assert!(checkpoint(&dir, 40, third.0).await.unwrap());
    let garbage = dir.collect_garbage(false).await.unwrap();
    assert_eq!(garbage.len(), 3, "the old part of step 20, and what is left of 30: {garbage:?}");
}

#[tokio::test]
async fn generations_are_claimed_by_one_driver_each() {
    let (_folder, dir) = open();
    let claims = futures::future::join_all((0..8).map(|i| {
        let dir = dir.clone();
        async move { dir.claim_generation(&i.to_string()).await.unwrap().0 }
    }))
    .await;
    let mut sorted = claims.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=8).collect::<Vec<_>>());
}

#[tokio::test] // CKP-1
async fn parts_without_a_manifest_are_no_checkpoint_and_damage_is_named() {
    let (_folder, dir) = open();
    checkpoint(&dir, 1, 1).await.unwrap();
    checkpoint(&dir, 2, 1).await.unwrap();
    let orphan = dir.path(&Paths::part(GlobalStep(3), Generation(1), 0, 1));
    dir.store().put(&orphan, PutPayload::from_static(b"half a checkpoint")).await.unwrap();
    assert_eq!(dir.find_checkpoint().await.unwrap().1.restore, Some(GlobalStep(2)));
    let part = Paths::part(GlobalStep(2), Generation(1), 0, 1);
    let file = dir.local_path().unwrap().join(&part);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (found, target) = dir.find_checkpoint().await.unwrap();
    assert_eq!(found.unwrap().manifest.global_step, GlobalStep(1));
    let damage = target.skipped[0].damage.as_deref().unwrap();
    assert!(damage.contains(&part) && damage.contains("checksum"), "{damage}");
    dir.set_aside(&target.skipped, Generation(2)).await.unwrap();
    assert!(dir.find_checkpoint().await.unwrap().1.skipped.is_empty());
    assert!(checkpoint(&dir, 2, 2).await.unwrap(), "the step can be reached again");
}

#[tokio::test] // CKP-4
async fn the_oldest_checkpoints_go_with_all_their_files() {
    let (_folder, dir) = open();
    for step in [5, 10, 15] {
        checkpoint(&dir, step, 1).await.unwrap();
    }
    dir.retain(&keep(2), &BTreeMap::new(), |_| true).await.unwrap();
    let left = std::fs::read_dir(dir.local_path().unwrap().join(Paths::CHECKPOINTS)).unwrap();
    let mut left: Vec<String> = left.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["000000000010", "000000000015"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_known_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let dir = ModelDir::open(&file.join("model").display().to_string()).unwrap();
    let error = dir.probe().await.unwrap_err().to_string();
    assert!(error.contains("file/model") && error.contains("not writable"), "{error}");
}

#[tokio::test] // a folder without a manifest is no checkpoint: it neither counts nor pushes one out
async fn what_a_killed_job_left_does_not_push_out_a_checkpoint() {
    let (_folder, dir) = open();
    let generation = dir.claim_generation("").await.unwrap().0;
    for step in [10, 30] {
        checkpoint(&dir, step, generation).await.unwrap();
    }
    for step in [5, 41] {
        let path = Paths::part(GlobalStep(step), Generation(generation), 0, 1);
        dir.store().put(&dir.path(&path), PutPayload::from_static(b"half")).await.unwrap();
    }
    checkpoint(&dir, 40, generation).await.unwrap();
    dir.retain(&keep(1), &BTreeMap::new(), |_| true).await.unwrap();
    assert_eq!(dir.find_checkpoint().await.unwrap().1.restore, Some(GlobalStep(40)));
    let left: Vec<String> = dir.names(Paths::CHECKPOINTS).await.unwrap();
    assert_eq!(left.iter().filter_map(|n| Paths::parse_step(n)).map(|s| s.0).collect::<Vec<_>>(), [40, 41]);
}
