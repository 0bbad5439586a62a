//! `--init-from`: finds what another model's parameters are in, before any executor starts.

use tfos_core::checkpoint::{Loading, Paths};
use tfos_core::config::Restore;
use tfos_core::failure::chain;
use tfos_data::object_store::ObjectStoreExt;
use tfos_data::store;
use tfos_driver::model_dir::ModelDir;

use super::progress::Progress;
use crate::{Error, Result};

/// Its folder and its path there: of a model directory's newest whole checkpoint, or of the file that was named.
pub(super) async fn find(address: &str, restore: &Restore, progress: &Progress) -> Result<Loading> {
    let failed = |why: &str| Error::Usage(format!("--init-from `{address}`: {why}"));
    // Other nodes have another working directory.
    let url = store::to_url(address)?.to_string();
    let url = url.trim_end_matches('/');
    if url.ends_with(".safetensors") {
        let (folder, name) = url.rsplit_once('/').ok_or_else(|| failed("it is in no folder"))?;
        let (store, path, _) = store::open(url, store::Patience::Short)?;
        // Only this: a web server lists nothing.
        let there = store::within(url, store.head(&path)).await;
        there.map_err(|e| failed(&format!("the file cannot be read: {}", chain(&e).join(": "))))?;
        return Ok(restore.warm(folder.to_owned(), name.to_owned()));
    }
    store::first_contact(url).await?;
    let (dir, step) = match named_step(url) {
        Some((folder, step)) => (ModelDir::open(folder)?, Some(step)),
        None if url.ends_with(".json") => {
            return Err(failed("a manifest is MODEL_DIR/checkpoints/STEP/manifest.json"));
        }
        None => (ModelDir::open(url)?, None),
    };
    let step = match step {
        Some(step) => {
            let listed = dir.checkpoint(step).await?;
            let damage = match &listed.manifest {
                Ok(manifest) => dir.damage(manifest).await?,
                Err(why) => Some(why.clone()),
            };
            if let Some(what) = damage {
                return Err(Error::Application(format!(
                    "--init-from `{address}`: checkpoint {step} is damaged: {what}"
                )));
            }
            step
        }
        None => {
            let (found, target) = dir.find_checkpoint().await?;
            for skipped in &target.skipped {
                let why = skipped.damage.as_deref().unwrap_or("unreadable");
                progress.say(&format!("checkpoint {} of `{address}` is passed over: {why}", skipped.step));
            }
            let none = "it has no checkpoint that can be used, and is no .safetensors file";
            found.ok_or_else(|| failed(none))?.manifest.global_step
        }
    };
    Ok(restore.warm(dir.url().to_string(), Paths::manifest(step)))
}

/// Model directory and step of the URL of a manifest, or of the folder that it is in.
fn named_step(url: &str) -> Option<(&str, tfos_core::ids::GlobalStep)> {
    let (rest, name) = url.strip_suffix("/manifest.json").unwrap_or(url).rsplit_once('/')?;
    let dir = rest.strip_suffix(Paths::CHECKPOINTS)?.strip_suffix('/')?;
    Some((dir, Paths::parse_step(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_and_its_folder_name_a_step_of_a_model_directory() {
        let step = Some(("s3://b/m", tfos_core::ids::GlobalStep(42)));
        assert_eq!(named_step("s3://b/m/checkpoints/000000000042/manifest.json"), step);
        assert_eq!(named_step("s3://b/m/checkpoints/000000000042"), step);
        for other in ["s3://b/m", "s3://b/m/checkpoints", "s3://b/m/checkpoints/42", "s3://b/m/manifest.json"] {
            assert_eq!(named_step(other), None, "{other}");
        }
    }
}
