//! Checkpoints of every cut, read back in every cut, from a store that remembers what was asked of it.

use std::ops::Range;

use futures::executor::block_on;
use object_store::memory::InMemory;
use tfos_core::checkpoint::{Extent, FORMAT, Loading, Missing, Part, Paths, Renames};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::rows::CommittedRows;
use tfos_ps::memory::{Arena, Cut};
use tfos_ps::{FullState, Layout, Optimizer, Scheduled, Snapshot, shard_range};

use super::blocks::BlockCrc;
use super::watched::{Watched, bytes_of};
use super::*;

const SLOTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

fn adam() -> Scheduled {
    Optimizer::adam(0.1).into()
}

fn layout(scale: i64) -> Layout {
    let variables = [("a/weight", vec![5, scale]), ("b", vec![]), ("c", vec![3 * scale]), ("empty", vec![0, 4])];
    let variables = variables.map(|(name, shape)| (name.to_owned(), shape));
    Layout::new(variables, [("bn/mean".to_owned(), vec![3]), ("bn/var".to_owned(), vec![scale])]).unwrap()
}

/// Values that name their place.
fn state(layout: &Layout) -> FullState {
    let flat = |k: f32, n: usize| (0..n).map(|i| k * 1e6 + i as f32).collect::<Vec<f32>>();
    FullState {
        step: 7,
        optimizer_step: 6,
        params: flat(1.0, layout.total),
        slots: vec![(SLOTS[0].into(), flat(2.0, layout.total)), (SLOTS[1].into(), flat(3.0, layout.total))],
        buffers: flat(4.0, layout.buffers_total),
    }
}

/// A checkpoint in `shards` parts, with checksums of blocks of this size, or without.
fn written(files: &InMemory, layout: &Layout, shards: usize, block: Option<u64>) -> Manifest {
    let whole = state(layout);
    let arena = Arena::new().unwrap();
    let mut parts = vec![];
    for k in 0..shards {
        let range = shard_range(layout.total, shards, k);
        let (start, end) = (range.start as u64, range.end as u64);
        let cut = |values: &[f32]| Cut::of(&arena, &values[range.clone()]).unwrap();
        let snapshot = Snapshot {
            id: 1,
            step: whole.step,
            optimizer_step: whole.optimizer_step,
            params: cut(&whole.params),
            slots: whole.slots.iter().map(|(name, v)| (name.clone(), cut(v))).collect(),
            buffers: (k == 0).then(|| whole.buffers.clone()),
            range: range.clone(),
        };
        let content = Content::new(layout, snapshot).unwrap();
        let file = content.pieces().map(|piece| piece.unwrap()).collect::<Vec<_>>().concat();
        assert_eq!(file.len() as u64, content.bytes());
        let path = Paths::part(GlobalStep(7), Generation(1), k as u32, shards as u32);
        let mut crc = BlockCrc::of(block.unwrap_or(1 << 20));
        crc.update(&file);
        let (crc32c, blocks) = crc.finish();
        let blocks = block.map(|_| blocks);
        parts.push(Part { path: path.clone(), bytes: file.len() as u64, crc32c, start, end, blocks });
        block_on(files.put(&Path::from(path), file.into())).unwrap();
    }
    let manifest = Manifest {
        format: FORMAT,
        tfos_version: "0".into(),
        application: "a".into(),
        generation: Generation(1),
        global_step: GlobalStep(7),
        layout: serde_json::to_value(layout).unwrap(),
        optimizer: serde_json::to_value(adam()).unwrap(),
        optimizer_step: 6,
        parts,
        input_fingerprint: "f".into(),
        rows: CommittedRows::default(),
        arguments: serde_json::Value::Null,
        columns: vec![],
        rows_total: 0,
        ledger: vec![],
    };
    let path = Path::from(Paths::manifest(GlobalStep(7)));
    block_on(files.put(&path, serde_json::to_vec(&manifest).unwrap().into())).unwrap();
    manifest
}

fn store(watched: &Arc<Watched>) -> CheckpointStore {
    CheckpointStore { store: watched.clone(), root: Path::default(), local: None, shown: String::new() }
}

/// The same files on this host, where they are read straight into place; they are there as long as the folder.
fn on_disk(watched: &Watched) -> (tempfile::TempDir, CheckpointStore) {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = block_on(watched.inner.list(None).try_collect()).unwrap();
    for file in files {
        let bytes = block_on(block_on(watched.inner.get(&file.location)).unwrap().bytes()).unwrap();
        let path = folder.path().join(file.location.as_ref());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let store = CheckpointStore::open(folder.path().to_str().unwrap()).unwrap();
    (folder, store)
}

fn own() -> Loading {
    Loading::own(Paths::manifest(GlobalStep(7)))
}

/// What one shard reads: parameters, slots, buffers of the first one; what nobody wrote stays -1.
fn read(store: &CheckpointStore, how: &Loading, model: &Layout, range: Range<usize>) -> Result<FullState, Error> {
    let plan = block_on(store.plan(how, model, Some(&adam())))?;
    let mut state = FullState {
        step: plan.step(),
        optimizer_step: plan.optimizer_step(),
        params: vec![-1.0; range.len()],
        slots: SLOTS.iter().map(|s| ((*s).to_owned(), vec![-1.0; range.len()])).collect(),
        buffers: vec![-1.0; if range.start == 0 { model.buffers_total } else { 0 }],
    };
    let slots = state.slots.iter_mut().map(|(name, v)| (name.clone(), Segments::new(range.start, [v.as_mut_slice()])));
    let mut into = Destination {
        params: Segments::new(range.start, [state.params.as_mut_slice()]),
        slots: slots.collect(),
        buffers: (range.start == 0).then(|| Segments::new(0, [state.buffers.as_mut_slice()])),
    };
    block_on(plan.load(range, &mut into))?;
    Ok(state)
}

#[test] // LOD-2
fn every_cut_is_read_back_in_every_cut() {
    // 1: the first shards have nothing.
    for scale in [1, 9, 40] {
        let layout = layout(scale);
        let whole = state(&layout);
        for block in [None, Some(64), Some(4096)] {
            for shards in 1..5 {
                let watched = Arc::new(Watched::default());
                let manifest = written(&watched.inner, &layout, shards, block);
                let (_folder, disk) = on_disk(&watched);
                for store in [store(&watched), disk] {
                    assert_eq!(block_on(store.load(&manifest)).unwrap().state, whole, "{shards} of {scale}");
                    (1..5).for_each(|readers| every_reader_reads_its_own(&store, &layout, &whole, readers));
                }
            }
        }
    }
}

fn every_reader_reads_its_own(store: &CheckpointStore, layout: &Layout, whole: &FullState, readers: usize) {
    for k in 0..readers {
        let range = shard_range(layout.total, readers, k);
        let got = read(store, &own(), layout, range.clone()).unwrap();
        assert_eq!((got.step, got.optimizer_step), (7, 6));
        assert_eq!(got.params, whole.params[range.clone()]);
        for (got, wanted) in got.slots.iter().zip(&whole.slots) {
            assert_eq!((&got.0, &got.1[..]), (&wanted.0, &wanted.1[range.clone()]));
        }
        assert_eq!(got.buffers, if range.start == 0 { &whole.buffers[..] } else { &[] });
    }
}

#[test] // LOD-1
fn a_reader_reads_the_blocks_of_its_range_only() {
    const BLOCK: u64 = 4096;
    let layout = layout(10_000);
    let watched = Arc::new(Watched::default());
    let manifest = written(&watched.inner, &layout, 3, Some(BLOCK));
    let store = store(&watched);
    let files: u64 = manifest.parts.iter().map(|p| p.bytes).sum();
    let mut all = 0;
    for k in 0..4 {
        let range = shard_range(layout.total, 4, k);
        read(&store, &own(), &layout, range.clone()).unwrap();
        let mut reads = watched.take();
        reads.remove(&Paths::manifest(GlobalStep(7)));
        let values = range.len() as u64 * 4 * 3 + if k == 0 { layout.buffers_total as u64 * 4 } else { 0 };
        // For each part: the header's block; for each of the three vectors, and the buffers, two blocks that are cut.
        let parts = reads.len() as u64;
        let read = bytes_of(&reads);
        assert!(read >= values && read <= values + parts * BLOCK * 9, "{read} bytes for {values}");
        for (file, ranges) in &reads {
            let part = manifest.parts.iter().find(|p| p.path == *file).unwrap();
            let (start, end) = (range.start as u64, range.end as u64);
            assert!(part.start < end && start < part.end, "{file} is none of its own");
            let mut sorted = ranges.clone();
            sorted.sort_by_key(|r| r.start);
            assert!(sorted.windows(2).all(|w| w[0].end <= w[1].start), "nothing twice: {sorted:?}");
            assert!(ranges.iter().all(|r| r.start % BLOCK == 0));
        }
        all += read;
    }
    assert!(all < files + files / 4, "{all} bytes by four readers of {files}");
    // An evaluator wants no slots.
    let plan = block_on(store.plan(&own(), &layout, None)).unwrap();
    watched.take();
    let (mut params, mut buffers) = (vec![0.0; layout.total], vec![0.0; layout.buffers_total]);
    let params = Segments::new(0, [params.as_mut_slice()]);
    let buffers = Some(Segments::new(0, [buffers.as_mut_slice()]));
    block_on(plan.load(0..layout.total, &mut Destination { params, slots: vec![], buffers })).unwrap();
    assert!(bytes_of(&watched.take()) < files / 2, "a third, and the buffers");
}

/// The message, and its causes.
fn message(result: Result<FullState, Error>) -> String {
    tfos_core::failure::chain(&result.unwrap_err()).join(": ")
}

#[test] // LOD-1
fn damage_is_named_by_file_and_block_and_only_where_it_is_read() {
    let layout = layout(1000);
    for (block, is_on_disk) in [(Some(1024), false), (None, false), (Some(1024), true), (None, true)] {
        let watched = Arc::new(Watched::default());
        let manifest = written(&watched.inner, &layout, 2, block);
        let store = store(&watched);
        let path = Path::from(manifest.parts[1].path.clone());
        let good = block_on(block_on(watched.inner.get(&path)).unwrap().bytes()).unwrap();
        let put = |bytes: Vec<u8>| block_on(watched.inner.put(&path, bytes.into())).unwrap();
        let mine = |k| {
            let disk = is_on_disk.then(|| on_disk(&watched));
            let store = disk.as_ref().map_or(&store, |(_, store)| store);
            read(store, &own(), &layout, shard_range(layout.total, 4, k))
        };

        let mut flipped = good.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        put(flipped);
        let said = message(mine(3));
        assert!(said.contains("part-00001-of-00002") && said.contains("checksum"), "{said}");
        assert_eq!(said.contains(&format!("block {}", (good.len() - 1) / 1024)), block.is_some(), "{said}");
        assert!(mine(0).is_ok(), "of another part");
        assert_eq!(mine(2).is_ok(), block.is_some(), "of the same part, but of no block of its own");

        put(good[..good.len() - 5].to_vec());
        let said = message(mine(3));
        assert!(said.contains("part-00001-of-00002") && said.contains("cut off"), "{said}");

        let mut header = good.to_vec();
        header[20] ^= 1;
        put(header);
        let said = message(mine(3));
        assert!(said.contains("part-00001-of-00002"), "{said}");

        block_on(watched.inner.delete(&path)).unwrap();
        let error = mine(3).unwrap_err();
        assert!(error.is_gone() && error.to_string().contains("part-00001-of-00002"), "{error}");
    }
}

#[test] // LOD-2
fn renamed_variables_come_from_other_places() {
    let old = layout(40);
    // Another order of names, so other places in the flat vector; `b` and a buffer are new.
    let variables = [("z/weight", vec![5, 40]), ("b2", vec![]), ("a", vec![120])];
    let variables = variables.map(|(name, shape)| (name.to_owned(), shape));
    let new = Layout::new(variables, [("bn2/mean".to_owned(), vec![3]), ("other".to_owned(), vec![2])]).unwrap();
    let renames = ["a/*=z/*", "c=a", "bn/*=bn2/*"].map(str::to_owned).to_vec();
    let how =
        |extent, missing| Loading { extent, missing, renames: Renames::try_from(renames.clone()).unwrap(), ..own() };
    for block in [None, Some(256)] {
        let watched = Arc::new(Watched::default());
        written(&watched.inner, &old, 3, block);
        let store = store(&watched);
        let refused = message(read(&store, &how(Extent::Full, Missing::Error), &new, 0..new.total));
        for name in ["b2", "other", "bn/var", "b []", "empty", "manifest.json"] {
            assert!(refused.contains(name), "{name} in {refused}");
        }
        for extent in [Extent::Full, Extent::ParametersOnly, Extent::Warm] {
            let how = how(extent, Missing::Init);
            let [a, b2, z] = &new.variables[..] else { panic!("three variables") };
            let mut joined = FullState { params: vec![], slots: vec![], ..state(&new) };
            for k in 0..2 {
                let got = read(&store, &how, &new, shard_range(new.total, 2, k)).unwrap();
                joined.params.extend(got.params);
                joined.slots.extend(got.slots);
                if k == 0 {
                    joined.buffers = got.buffers;
                    let steps = [(7, 6), (7, 0), (0, 0)][extent as usize];
                    assert_eq!((got.step, got.optimizer_step), steps);
                }
            }
            let from = |name: &str| old.variables.iter().find(|v| v.name == name).unwrap().offset;
            let value = |place: usize, k: f32| k * 1e6 + place as f32;
            for (i, got) in joined.params.iter().enumerate() {
                let wanted = match i {
                    i if i < b2.offset => value(from("c") + i - a.offset, 1.0),
                    i if i < z.offset => -1.0,
                    i => value(from("a/weight") + i - z.offset, 1.0),
                };
                assert_eq!(*got, wanted, "element {i}");
            }
            assert_eq!(joined.buffers, [4e6, 4e6 + 1.0, 4e6 + 2.0, -1.0, -1.0]);
            let slot = joined.slots[0].1[0];
            assert_eq!(slot, if extent == Extent::Full { value(from("c"), 2.0) } else { -1.0 });
            let plan = block_on(store.plan(&how, &new, None)).unwrap();
            let (fresh, fresh_buffers) = plan.fresh();
            let is_one = |ranges: &[Range<usize>], one: Range<usize>| matches!(ranges, [only] if *only == one);
            assert!(is_one(&fresh, b2.offset..b2.offset + 1) && is_one(&fresh_buffers, 3..5));
            assert!(plan.notes().iter().any(|n| n.contains("b2")), "{:?}", plan.notes());
        }
    }
}

#[test]
fn the_state_of_another_optimizer_is_refused_with_what_to_do() {
    let layout = layout(4);
    let watched = Arc::new(Watched::default());
    written(&watched.inner, &layout, 1, Some(64));
    let store = store(&watched);
    let plan =
        |rule: Optimizer, how: Loading| block_on(store.plan(&how, &layout, Some(&rule.into()))).map(|p| p.step());
    for (rule, name) in [(Optimizer::sgd(0.1), "sgd"), (Optimizer::lamb(0.1), "lamb")] {
        let error = plan(rule, own()).unwrap_err().to_string();
        for word in ["manifest.json", "adam", name, "use the same optimizer", "--restore parameters-only"] {
            assert!(error.contains(word), "{word} in {error}");
        }
        assert_eq!(plan(rule, Loading { extent: Extent::ParametersOnly, ..own() }).unwrap(), 7);
    }
    // A rate is no state.
    assert_eq!(plan(Optimizer::adam(0.5), own()).unwrap(), 7);
}

#[test]
fn a_file_of_another_program_is_read_by_its_names() {
    let watched = Arc::new(Watched::default());
    // Its data begins at an odd place, and its tensors in any order.
    let header = r#"{"odd":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
        "net.w":{"dtype":"F64","shape":[2,2],"data_offsets":[3,35]},"net.b":{"dtype":"BF16","shape":[2],"data_offsets":[35,39]},
        "bn.mean":{"dtype":"F32","shape":[1],"data_offsets":[39,43]}}"#;
    let header = format!("{header}{}", " ".repeat((8 - header.len() % 8) % 8 + 1));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([9, 9, 9]);
    [1.0f64, 2.0, 3.0, 4.5].iter().for_each(|v| file.extend(v.to_le_bytes()));
    file.extend([0xc0, 0x3f, 0x00, 0xc0]);
    file.extend(8.0f32.to_le_bytes());
    block_on(watched.inner.put(&Path::from("torch.safetensors"), file.clone().into())).unwrap();
    let model = [("model.b", vec![2]), ("model.w", vec![2, 2])].map(|(name, shape)| (name.to_owned(), shape));
    let model = Layout::new(model, [("bn.mean".to_owned(), vec![1])]).unwrap();
    let how = Loading {
        extent: Extent::Warm,
        renames: Renames::try_from(vec!["net.*=model.*".to_owned()]).unwrap(),
        missing: Missing::Init,
        ..Loading::own("torch.safetensors")
    };
    let store = store(&watched);
    let got = read(&store, &how, &model, 0..6).unwrap();
    assert_eq!((got.params, got.buffers, got.step), (vec![1.5, -2.0, 1.0, 2.0, 3.0, 4.5], vec![8.0], 0));
    assert_eq!(got.slots[0].1, [-1.0; 6]);
    // The part of one of several ps.
    assert_eq!(read(&store, &how, &model, 3..6).unwrap().params, [2.0, 3.0, 4.5]);
    // Whoever asks for all of it hears of the one that is no float.
    let said = message(read(&store, &Loading { missing: Missing::Error, ..how.clone() }, &model, 0..6));
    assert!(said.contains("odd [3] of U8"), "{said}");
    for bad in [vec![], vec![0; 7], vec![255; 64], b"\x02\0\0\0\0\0\0\0{}tail".to_vec()] {
        block_on(watched.inner.put(&Path::from("torch.safetensors"), bad.into())).unwrap();
        let said = message(read(&store, &how, &model, 0..6));
        assert!(said.contains("`torch.safetensors`") && said.contains("no safetensors file"), "{said}");
    }
}
