//! The part of `--dry-run` about parameter servers: who would hold what, and what a step moves, as far as it can be told.
//!
//! Which variables a model has is known to the program that makes it. A built-in application is asked; of any other the
//! newest checkpoint in the model directory tells; and where there is neither, that is said.

use std::sync::Arc;

use serde_json::{Value, json};
use tfos_core::config::{Consistency, Job, Placement};
use tfos_driver::model_dir::ModelDir;
use tfos_executor::plane;
use tfos_executor::ps::{Compress, Layout};

use crate::application::Stop;
use crate::{Application, Error, Result};

/// Who would hold what.
pub(super) enum Placed {
    /// No ps.
    Nobody,
    /// It cannot be told, because of this.
    Unknown(String),
    /// Known from there.
    Known(Layout, String),
}

impl Placed {
    /// Asks the application, or looks for a checkpoint; nothing is written.
    pub(super) fn of(job: &Job, application: &Arc<dyn Application>) -> Result<Self> {
        let shards = job.shape.num_ps as usize;
        if shards == 0 {
            return Ok(Self::Nobody);
        }
        let asked = application.variables(&job.arguments).map_err(|stop| match stop {
            Stop::Help(text) | Stop::Usage(text) => Error::Usage(text),
        })?;
        if let Some(variables) = asked {
            let layout = match job.plane.placement {
                Placement::Even => Layout::new(variables, []),
                Placement::RoundRobin => Layout::round_robin(variables, [], shards),
            };
            let layout = layout.map_err(|e| Error::Application(e.to_string()))?;
            return Ok(Self::Known(layout, format!("`{}`", application.name())));
        }
        let found = job.model_dir.as_deref().map(newest).transpose()?.flatten();
        Ok(match (found, job.plane.placement) {
            (Some((layout, step)), Placement::Even) => {
                // Of another placement, perhaps: the even one is in the order of the names.
                let named = layout.variables.into_iter().map(|v| (v.name, v.shape));
                let layout = Layout::new(named, []).map_err(|e| Error::Application(e.to_string()))?;
                Self::Known(layout, format!("checkpoint {step}"))
            }
            (Some(_), Placement::RoundRobin) => Self::Unknown(format!(
                "`{}` does not say in which order it makes its variables; the log of the chief does when training begins",
                application.name()
            )),
            (None, _) => Self::Unknown(format!(
                "`{}` does not say what variables it has, and there is no checkpoint yet; the log of the chief tells who \
                 holds what when training begins",
                application.name()
            )),
        })
    }

    /// For people, after the nodes.
    pub(super) fn lines(&self, job: &Job) -> Vec<String> {
        let shards = job.shape.num_ps as usize;
        match self {
            Self::Nobody => vec![],
            Self::Unknown(why) => vec![format!("parameters     {why}")],
            Self::Known(layout, from) => {
                let (total, count) = (layout.total, layout.variables.len());
                let mut lines = vec![
                    format!("parameters     {total} f32 in {count} variables, according to {from}"),
                    format!(
                        "placement      {}, the fullest ps has {:.3} times the mean",
                        job.plane.placement,
                        layout.imbalance(shards)
                    ),
                ];
                if matches!(job.consistency, Consistency::LocalSgd { .. }) {
                    lines.extend(layout.held(shards).iter().map(|held| format!("  {held}")));
                    let what = "none, but where nodes meet: parameters and each slot of the optimizer, there and back";
                    lines.push(format!("bytes a step   {what}"));
                    return lines;
                }
                let each = plane::describe(layout, shards, compress(job)).into_iter();
                lines.extend(each.map(|line| format!("  {line}")));
                let (sent, received) = moved(layout, shards, compress(job));
                let nodes = job.shape.num_trainers() as usize;
                lines.push(format!(
                    "bytes a step   {} for {nodes} training nodes: each sends {sent} (compression {}) and gets {received}",
                    nodes * (sent + received),
                    job.plane.compress
                ));
                lines
            }
        }
    }

    /// The same as JSON.
    pub(super) fn json(&self, job: &Job) -> Value {
        let shards = job.shape.num_ps as usize;
        match self {
            Self::Nobody => Value::Null,
            Self::Unknown(why) => json!({"unknown": why}),
            Self::Known(layout, from) => {
                let compress = compress(job);
                let each: Vec<Value> = layout
                    .held(shards)
                    .iter()
                    .map(|held| {
                        let variables = held.variables.iter();
                        let variables =
                            variables.map(|(v, part)| json!({"name": v.name, "start": part.start, "end": part.end}));
                        json!({"node": format!("ps:{}", held.shard), "elements": held.range.len(),
                               "variables": variables.collect::<Vec<_>>(),
                               "bytes_sent": held.sent(compress), "bytes_received": held.received()})
                    })
                    .collect();
                let (sent, received) = moved(layout, shards, compress);
                json!({"according_to": from, "elements": layout.total, "imbalance": layout.imbalance(shards), "ps": each,
                       "bytes_sent": sent, "bytes_received": received})
            }
        }
    }
}

fn compress(job: &Job) -> Compress {
    plane::compress(job.plane.compress)
}

/// Bytes that a training node sends and gets in a step.
fn moved(layout: &Layout, shards: usize, compress: Compress) -> (usize, usize) {
    let held = layout.held(shards);
    (held.iter().map(|h| h.sent(compress)).sum(), held.iter().map(tfos_executor::ps::Held::received).sum())
}

/// The layout of the newest checkpoint, and its step.
fn newest(address: &str) -> Result<Option<(Layout, u64)>> {
    super::runtime()?.block_on(async {
        let listed = ModelDir::open(address)?.list_checkpoints().await?;
        let layout = |m: &tfos_core::checkpoint::Manifest| serde_json::from_value(m.layout.clone()).ok();
        let found = listed.iter().rev().filter_map(|c| c.manifest.as_ref().ok());
        Ok(found.filter_map(|m| Some((layout(m)?, m.global_step.0))).next())
    })
}
