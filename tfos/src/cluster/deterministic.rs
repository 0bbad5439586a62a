//! Deterministic training: the rows of each partition are counted before, and are the same in each run.

use std::num::NonZeroU32;

use tfos_core::config::Consistency;
use tfos_core::rows::CommittedRows;
use tfos_data::datafusion::prelude::DataFrame;
use tfos_data::plan;
use tfos_driver::model_dir::Restored;

use super::Cluster;
use super::engine::Query;
use super::input::Planned;
use crate::{Error, Result};

impl Cluster {
    /// Micro-batches of a step, where the job promises equal bits.
    pub(super) fn micro_batches(&self) -> Option<NonZeroU32> {
        match self.job.consistency {
            Consistency::Deterministic { micro_batches } => Some(micro_batches),
            _ => None,
        }
    }

    /// A query whose rows cannot be counted without running it is staged: a filter, or files without statistics.
    pub(super) fn plan_in_one_order(&mut self, data: DataFrame) -> Result<Planned> {
        let physical = self.block_on(plan::in_one_order(data.clone()))?;
        let known = (0..plan::partitions(&physical)).all(|p| plan::partition_rows(&physical, p).is_some());
        match plan::validate_no_exchange(&physical) {
            Ok(()) if known => Planned::of_plan(&physical),
            Ok(()) => {
                let why = "--deterministic needs the number of rows of each partition, which the query does not tell";
                self.stage(Query { rows: data, plan: physical }, why)
            }
            Err(tfos_data::Error::Exchange { .. }) => {
                self.stage(Query { rows: data, plan: physical }, super::staging::EXCHANGE)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Files that nodes read themselves say nothing of their rows.
    pub(super) fn check_counted(&self, planned: &Planned) -> Result<()> {
        if self.micro_batches().is_some() && planned.partition_rows.iter().any(Option::is_none) {
            return Err(Error::Usage(
                "--deterministic needs the number of rows of each file before it is read; use --input-mode feed, which \
                 counts them, for these files"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The cut into steps is part of what was trained.
    pub(super) fn check_cut(&self, restored: &Restored) -> Result<()> {
        let Some(asked) = self.micro_batches() else { return Ok(()) };
        let foreign = |why: String| Err(tfos_driver::Error::Foreign { path: restored.path.clone(), why }.into());
        match restored.manifest.rows.cut {
            Some(cut) if cut.micro_batches == asked => Ok(()),
            Some(cut) => foreign(format!(
                "it was trained with {} micro-batches a step, and this job asks for {asked}; give --micro-batches {} or \
                 another --model-dir",
                cut.micro_batches, cut.micro_batches
            )),
            // Nothing of this data was trained on yet.
            None if restored.manifest.rows == CommittedRows::default() => Ok(()),
            None => foreign(
                "it was not trained with --deterministic, so what it holds is no whole number of steps; leave \
                 --deterministic out or use another --model-dir"
                    .into(),
            ),
        }
    }
}
