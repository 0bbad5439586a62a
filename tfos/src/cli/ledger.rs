//! `tfos verify-ledger`: each row of each finished epoch exactly once, or which rows not.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use serde_json::json;
use tfos_core::rows::RowRange;
use tfos_driver::ledger::{EpochAudit, audit};
use tfos_driver::model_dir::ModelDir;

use super::flags::Output;
use crate::{Error, Result};

/// Ranges of a kind that are shown to people; JSON has more.
const SHOWN: usize = 20;

pub(super) fn verify(model_dir: &str, output: Output) -> Result<u8> {
    super::init_logs("warn");
    let runtime = super::runtime()?;
    let dir = ModelDir::open(model_dir)?;
    runtime.block_on(dir.contact())?;
    let (found, target) = runtime.block_on(dir.find_checkpoint())?;
    let Some(restored) = found else {
        return Err(Error::Usage(format!("`{model_dir}` has no checkpoint, so it has no lineage to verify")));
    };
    let manifest = &restored.manifest;
    let audit = runtime.block_on(audit(&dir, &manifest.ledger, &manifest.rows))?;
    let ok = audit.is_clean() && audit.rows == manifest.rows_total && audit.global_step <= manifest.global_step.0;
    if output == Output::Json {
        println!(
            "{}",
            json!({"ok": ok, "checkpoint": restored.path, "global_step": manifest.global_step.0,
                   "rows_total": manifest.rows_total, "audit": audit,
                   "damaged": target.skipped.iter().map(|c| c.step.0).collect::<Vec<_>>()})
        );
        return Ok(u8::from(!ok));
    }
    println!(
        "checkpoint {} (step {}), {} rows applied in {} ranges, {} segments",
        restored.path,
        manifest.global_step,
        audit.rows,
        audit.leases,
        manifest.ledger.len()
    );
    audit.epochs.iter().for_each(show);
    if audit.rows != manifest.rows_total {
        println!("the checkpoint has seen {} rows, the ledger has {}", manifest.rows_total, audit.rows);
    }
    if audit.global_step > manifest.global_step.0 {
        println!("the ledger goes on to step {}, beyond the checkpoint", audit.global_step);
    }
    println!("{}", if ok { "each row of each finished epoch exactly once" } else { "the ledger contradicts itself" });
    Ok(u8::from(!ok))
}

fn show(epoch: &EpochAudit) {
    let state = if epoch.complete { "complete" } else { "in progress" };
    let EpochAudit { twice, missing, unexpected, more, .. } = epoch;
    println!(
        "epoch {}: {} rows, {state}, {} ranges twice, {} missing, {} unexpected{}",
        epoch.epoch,
        epoch.rows,
        twice.len(),
        missing.len(),
        unexpected.len(),
        if *more > 0 { format!(", {more} more") } else { String::new() }
    );
    for twice in twice.iter().take(SHOWN) {
        println!("  applied twice: {}", twice.range);
        for update in &twice.updates {
            let who = if update.worker == 0 { "chief:0".into() } else { format!("worker:{}", update.worker - 1) };
            let RowRange { start, end, .. } = update.range;
            println!("    by step {} of {who} as rows {start}..{end}, says {}", update.global_step, update.segment);
        }
    }
    missing.iter().take(SHOWN).for_each(|range| println!("  never applied: {range}"));
    unexpected.iter().take(SHOWN).for_each(|range| println!("  applied, but not seen by the checkpoint: {range}"));
}
