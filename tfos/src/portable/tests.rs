//! Exports in a temporary folder: what they hold, how they are replaced, and what is told of a bad one.

use std::path::Path;

use serde_json::json;
use tfos_core::failure::chain;
use tfos_driver::model_dir::{ModelDir, Restored};
use tfos_executor::portable::{FloatFile, Weights};

use super::export::{Description, export};
use super::folder::Folder;
use super::import::{Origin, import};
use super::unpack::Export;

/// A model directory with one checkpoint, of weights alone.
async fn model(root: &Path, name: &str, step: u64, value: f32) -> (ModelDir, Restored) {
    let address = |name: String| root.join(name).display().to_string();
    let (store, path, _) = tfos_data::store::resolve(&address(format!("{name}.safetensors"))).unwrap();
    let shapes = [("net.weight".to_owned(), vec![2, 1]), ("norm.running_mean".to_owned(), vec![3])];
    let mut file = FloatFile::create(&store, &path, &shapes, &[]).await.unwrap();
    file.push(&[value; 5]).await.unwrap();
    file.finish().await.unwrap();
    let dir = ModelDir::open(&address(name.to_owned())).unwrap();
    let weights = Weights::open(&address(format!("{name}.safetensors"))).await.unwrap();
    let origin = Origin { application: "app".into(), arguments: json!({"width": 1}), step };
    import(&weights, &dir, origin).await.unwrap();
    let restored = dir.find_checkpoint().await.unwrap().0.unwrap();
    (dir, restored)
}

async fn refused(address: &str) -> String {
    chain(&Export::open(address).await.unwrap_err()).join(": ")
}

#[tokio::test]
async fn an_export_holds_all_that_a_cluster_needs() {
    let root = tempfile::tempdir().unwrap();
    let (dir, from) = model(root.path(), "m", 7, 0.5).await;
    let assets = root.path().join("m/assets");
    std::fs::create_dir_all(&assets).unwrap();
    std::fs::write(assets.join("words.txt"), "one two").unwrap();
    let to = root.path().join("elsewhere/export").display().to_string();
    let (address, description) = export(&dir, &from, &to).await.unwrap();
    assert_eq!((address.as_str(), description.step), (to.as_str(), 7));
    let weights = Weights::open(&format!("{to}/model.safetensors")).await.unwrap();
    let names: Vec<&str> = weights.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["net.weight", "norm.running_mean"]);
    std::fs::remove_dir_all(root.path().join("m")).unwrap();
    let again = ModelDir::open(&root.path().join("n").display().to_string()).unwrap();
    Export::open(&to).await.unwrap().unpack(&again).await.unwrap();
    let manifest = again.find_checkpoint().await.unwrap().0.unwrap().manifest;
    assert_eq!((manifest.global_step.0, manifest.application.as_str()), (7, "app"));
    assert_eq!(manifest.arguments, json!({"width": 1}));
    assert!(manifest.is_weights_only() && !manifest.has_seen_data());
    assert_eq!(std::fs::read_to_string(root.path().join("n/assets/words.txt")).unwrap(), "one two");
}

#[tokio::test] // EXP-1
async fn an_export_that_is_there_is_of_one_step() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("export");
    let address = to.display().to_string();
    let (first, from) = model(root.path(), "a", 1, 1.0).await;
    std::fs::create_dir_all(root.path().join("a/assets")).unwrap();
    std::fs::write(root.path().join("a/assets/words.txt"), "one").unwrap();
    export(&first, &from, &address).await.unwrap();
    // Replaced by another, which has no such asset.
    let (second, newer) = model(root.path(), "b", 2, 2.0).await;
    export(&second, &newer, &address).await.unwrap();
    assert_eq!(Export::open(&address).await.unwrap().description.step, 2);
    assert!(!to.join("assets/words.txt").exists());
    // One that is interrupted leaves none: a folder in the place of the weights stops it.
    std::fs::remove_file(to.join("model.safetensors")).unwrap();
    std::fs::create_dir(to.join("model.safetensors")).unwrap();
    std::fs::write(to.join("model.safetensors/in-the-way"), "").unwrap();
    export(&first, &from, &address).await.unwrap_err();
    assert!(refused(&address).await.contains("no export.json"));
    std::fs::remove_dir_all(to.join("model.safetensors")).unwrap();
    export(&first, &from, &address).await.unwrap();
    // Who comes between old and new files sees it.
    std::fs::write(to.join("assets/words.txt"), "two").unwrap();
    assert!(refused(&address).await.contains("`assets/words.txt` is not the one"));
    std::fs::remove_file(to.join("assets/words.txt")).unwrap();
    assert!(refused(&address).await.contains("`assets/words.txt` is missing"));
}

#[tokio::test]
async fn what_is_no_export_is_told_so() {
    let root = tempfile::tempdir().unwrap();
    let address = root.path().display().to_string();
    assert!(refused(&address).await.contains("tfos export MODEL_DIR"));
    assert!(refused(&format!("{address}/none")).await.contains("no export.json"));
    for (text, words) in [("{", "damaged"), ("{\"format\": 9}", "use a newer tfos"), ("{\"format\": 1}", "damaged")] {
        std::fs::write(root.path().join("export.json"), text).unwrap();
        assert!(refused(&address).await.contains(words), "{text}");
    }
    assert!(Description::read(&Folder::open(&address).unwrap()).await.is_err());
}
