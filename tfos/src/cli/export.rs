//! `tfos export`: a checkpoint as files that PyTorch and `tfos predict` read.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use serde_json::json;
use tfos_core::checkpoint::Paths;
use tfos_core::ids::GlobalStep;
use tfos_driver::model_dir::{ModelDir, Restored};

use super::flags::{ExportFlags, Output};
use crate::portable::export::export;
use crate::{Error, Result};

pub(super) fn run(flags: &ExportFlags) -> Result<u8> {
    super::init_logs("warn");
    super::runtime()?.block_on(async {
        let dir = ModelDir::open(&flags.model_dir)?;
        dir.contact().await?;
        let from = checkpoint(&dir, flags.step).await?;
        let inside = || format!("{}/{}", dir.url().as_str().trim_end_matches('/'), Paths::EXPORT);
        let to = flags.to.clone().unwrap_or_else(inside);
        tfos_data::store::first_contact(&to).await?;
        let (address, description) = export(&dir, &from, &to).await?;
        let names: Vec<&str> = description.files.iter().map(|f| f.path.as_str()).collect();
        match flags.output {
            Output::Json => println!(
                "{}",
                json!({"status": "ok", "export": address, "application": description.application,
                       "step": description.step, "rows": description.rows, "files": names})
            ),
            Output::Text => {
                println!("step {} of {} is in {address}: {}", description.step, flags.model_dir, names.join(", "));
            }
        }
        Ok(0)
    })
}

/// The one of `step`, or the newest that is whole, as a job would resume from.
async fn checkpoint(dir: &ModelDir, step: Option<u64>) -> Result<Restored> {
    let Some(step) = step else {
        let (found, _) = dir.find_checkpoint().await?;
        return found.ok_or_else(|| Error::Usage(format!("`{}` has no checkpoint that is whole", dir.url())));
    };
    let listed = dir.checkpoint(GlobalStep(step)).await?;
    let damaged = |what| Error::Application(format!("checkpoint {step} is damaged: {what}"));
    Ok(Restored { path: Paths::manifest(GlobalStep(step)), manifest: listed.manifest.map_err(damaged)? })
}
