//! Predictions of an exported model: the rows of files or of a query, and what the model says of each, as a file.

use tfos_data::DataFrame;
use tfos_data::convert::{ConvertOptions, Converted};
use tfos_data::session::Format;

use super::Cluster;
use crate::{Error, Result};

/// Rows to predict, and where the predictions go.
#[derive(Debug, Clone)]
pub(crate) struct Prediction {
    pub(crate) data: String,
    pub(crate) format: Format,
    pub(crate) schema: Option<String>,
    /// Over the table `data`.
    pub(crate) sql: Option<String>,
    /// JSON of the nodes' arguments.
    pub(crate) arguments: String,
    pub(crate) output: String,
    pub(crate) output_format: Format,
    pub(crate) options: ConvertOptions,
}

impl Cluster {
    /// Runs inference over all rows and writes them, in their order, with the predictions beside their columns.
    pub(crate) fn predict(&mut self, prediction: Prediction) -> Result<Converted> {
        let Prediction { data, format, schema, sql, arguments, output, output_format, options } = prediction;
        let rows = match &sql {
            Some(query) => {
                self.register("data", &data, format, schema.as_deref())?;
                self.sql(query)?
            }
            None => self.read(&data, format, schema.as_deref())?,
        };
        let needed = self.application.inputs(&arguments);
        check_columns(&rows, sql.as_deref().unwrap_or(&data), &needed)?;
        self.arguments = arguments;
        let scored = self.inference(rows)?;
        if self.report.inference_rows == Some(0) {
            return Err(Error::Usage(format!("`{}` has no rows to predict", sql.unwrap_or(data))));
        }
        Ok(self.block_on(tfos_data::convert::write(scored, &output, output_format, &options))?)
    }
}

/// Whether the rows of `what`, files or a query, have the columns that are `wanted`.
pub(crate) fn check_columns<T: AsRef<str>>(rows: &DataFrame, what: &str, wanted: &[T]) -> Result<()> {
    let has: Vec<&str> = rows.schema().fields().iter().map(|f| f.name().as_str()).collect();
    match wanted.iter().map(AsRef::as_ref).find(|name| !has.contains(name)) {
        None => Ok(()),
        Some(missing) => Err(Error::Usage(format!(
            "`{what}` has no column `{missing}`, it has {}; name one so with --sql 'SELECT … AS {missing} …'",
            has.join(", ")
        ))),
    }
}
