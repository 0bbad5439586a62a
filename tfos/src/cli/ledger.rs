//! `tfos verify-ledger`: each row of each finished epoch exactly once, or which rows not.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use serde_json::json;
use tfos_driver::ledger::audit;
use tfos_driver::model_dir::ModelDir;

use super::flags::Output;
use crate::{Error, Result};

pub(super) fn verify(model_dir: &str, output: Output) -> Result<u8> {
    super::init_logs("warn");
    let runtime = super::runtime()?;
    let dir = ModelDir::open(model_dir)?;
    runtime.block_on(dir.contact())?;
    let (found, target) = runtime.block_on(dir.find_checkpoint())?;
    let Some(restored) = found else {
        return Err(Error::Usage(format!("`{model_dir}` has no checkpoint, so it has no lineage to verify")));
    };
    let rows = &restored.manifest.rows;
    let audit = runtime.block_on(audit(&dir, &restored.manifest.ledger, rows.complete_epochs, &rows.partition_rows))?;
    let bad = audit.rows != restored.manifest.rows_total
        || audit.epochs.iter().any(|e| !e.twice.is_empty() || !e.missing.is_empty());
    if output == Output::Json {
        println!(
            "{}",
            json!({"ok": !bad, "checkpoint": restored.path, "rows_total": restored.manifest.rows_total,
                   "audit": audit, "damaged": target.skipped.iter().map(|c| c.step.0).collect::<Vec<_>>()})
        );
        return Ok(u8::from(bad));
    }
    println!("checkpoint {} (step {}), {} rows applied", restored.path, audit.global_step, audit.rows);
    for e in &audit.epochs {
        let state = if e.complete { "complete" } else { "in progress" };
        println!(
            "epoch {}: {} rows, {state}, {} ranges twice, {} missing",
            e.epoch,
            e.rows,
            e.twice.len(),
            e.missing.len()
        );
        for range in e.twice.iter().take(20) {
            println!("  applied twice: {range}");
        }
        for range in e.missing.iter().take(20) {
            println!("  never applied: {range}");
        }
    }
    println!("{}", if bad { "the ledger contradicts itself" } else { "each row of each finished epoch exactly once" });
    Ok(u8::from(bad))
}
