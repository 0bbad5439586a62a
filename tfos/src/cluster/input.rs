//! What is fed: a planned query, or a list of files.

use std::sync::Arc;

use tfos_core::checkpoint::Column;
use tfos_core::proto;
use tfos_core::rows::Shuffle;
use tfos_data::arrow::datatypes::{Field, Schema};
use tfos_data::datafusion::physical_plan::ExecutionPlan;
use tfos_data::datafusion::prelude::DataFrame;
use tfos_data::session::Format;
use tfos_data::{plan, store};

use super::Cluster;
use super::engine::Query;
use crate::{Error, Result};

/// Files that nodes read themselves.
#[derive(Debug, Clone)]
pub struct DirectInput {
    /// A path, a directory, a glob, or a list separated by commas.
    pub url: String,
    /// Only [`Format::TfRecord`] yet.
    pub format: Format,
    /// Schema in text form; `None` infers it from the first records.
    pub schema: Option<String>,
}

/// An input that is ready to be sent to nodes.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) plan: Vec<u8>,
    pub(crate) files: Vec<String>,
    pub(crate) format: String,
    pub(crate) schema: String,
    pub(crate) partition_rows: Vec<Option<u64>>,
    pub(crate) shuffle: Option<Shuffle>,
    pub(crate) fingerprint: String,
    /// Where known: nodes that read files themselves see them first.
    pub(crate) columns: Vec<Column>,
}

impl Planned {
    /// A plan without an exchange.
    pub(crate) fn of_plan(physical: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let partitions = plan::partitions(physical);
        Ok(Self {
            plan: plan::encode(physical)?,
            files: vec![],
            format: String::new(),
            schema: String::new(),
            partition_rows: (0..partitions).map(|p| plan::partition_rows(physical, p)).collect(),
            shuffle: None,
            fingerprint: plan::fingerprint(physical)?,
            columns: columns(&physical.schema()),
        })
    }

    /// Files, each a partition of so many rows where known.
    pub(crate) fn of_files(files: Vec<String>, partition_rows: Vec<Option<u64>>) -> Self {
        Self {
            plan: vec![],
            files,
            format: String::new(),
            schema: String::new(),
            partition_rows,
            shuffle: None,
            fingerprint: String::new(),
            columns: vec![],
        }
    }

    /// Shuffles it; under the same address another order has another row, so the identity changes too.
    pub(crate) fn shuffled(mut self, shuffle: Option<Shuffle>) -> Self {
        if let Some(Shuffle { seed, block_rows }) = shuffle {
            self.fingerprint.push_str(&format!("|shuffled in blocks of {block_rows} by seed {seed}"));
        }
        self.shuffle = shuffle;
        self
    }

    pub(crate) fn input(&self, name: &str) -> proto::Input {
        proto::Input {
            name: name.to_owned(),
            plan: self.plan.clone().into(),
            files: self.files.clone(),
            format: self.format.clone(),
            schema: self.schema.clone(),
            shuffle: self.shuffle.map(Into::into),
        }
    }
}

impl Cluster {
    pub(super) fn plan(&mut self, data: DataFrame) -> Result<Planned> {
        let physical = self.block_on(data.clone().create_physical_plan())?;
        match plan::validate_no_exchange(&physical) {
            Err(tfos_data::Error::Exchange { .. }) => {
                return self.stage(Query { rows: data, plan: physical }, super::staging::EXCHANGE);
            }
            other => other?,
        }
        Planned::of_plan(&physical)
    }
}

fn columns(schema: &Schema) -> Vec<Column> {
    let column = |f: &Arc<Field>| Column { name: f.name().clone(), data_type: f.data_type().to_string() };
    schema.fields().iter().map(column).collect()
}

/// Lists the files of a direct input; each is a partition, in the order of their names.
pub(super) async fn list(input: &DirectInput) -> Result<Planned> {
    if input.format != Format::TfRecord {
        return Err(Error::Usage(format!(
            "nodes read tfrecord files themselves, not {}; use --input-mode feed for it",
            input.format
        )));
    }
    let listing = store::list(&input.url).await?;
    let files: Vec<String> =
        listing.files.iter().map(|f| store::display(listing.root.as_str(), Some(&f.location))).collect();
    let mut identity = String::from("direct");
    for (file, meta) in files.iter().zip(&listing.files) {
        identity.push_str(&format!("|{file}:{}", meta.size));
    }
    identity.push_str(input.schema.as_deref().unwrap_or(""));
    let schema = match (&input.schema, files.first()) {
        (Some(schema), _) => schema.clone(),
        (None, Some(first)) => {
            let reader = tfos_data::tfrecord::TfRecordReader::open(first, None, 1).await?;
            tfos_data::tfrecord::schema_text(&reader.schema())?
        }
        (None, None) => String::new(),
    };
    let partition_rows = vec![None; files.len()];
    let planned = Planned::of_files(files, partition_rows);
    Ok(Planned { format: input.format.to_string(), schema, fingerprint: identity, ..planned })
}
