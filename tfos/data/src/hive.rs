//! Columns that stand in the names of folders (`year=2024/month=1/part.parquet`), as Hive and Spark write them.
//!
//! The folders count from the one that was addressed, or from the last one before a wildcard. A value that is a whole
//! number in every folder makes an `Int64` column, any other `Utf8`; a schema in the user's words decides otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result as DfResult, ScalarValue, Statistics};
use datafusion::datasource::listing::helpers::{expr_applicable_for_cols, filter_partitioned_file};
use datafusion::datasource::listing::{ListingTable, PartitionedFile};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::path::Path;

use crate::error::{Error, Result};
use crate::store::Listing;

/// What Hive writes for NULL.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// `key=value` of each folder on the way to a file, or nothing where one of them is no such folder.
pub(crate) fn keys<'a>(folders: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let pair = |folder: &str| folder.split_once('=').map(|(k, v)| (decode(k), decode(v)));
    folders.map(pair).collect::<Option<Vec<_>>>().filter(|p| p.iter().all(|(k, _)| !k.is_empty())).unwrap_or_default()
}

/// Undoes `%2F` and its kin, by which a value keeps what a folder's name cannot hold.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(hex.unwrap_or(*byte));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The columns, and their values for each file.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    fields: Vec<FieldRef>,
    values: HashMap<Path, Vec<ScalarValue>>,
}

impl Columns {
    /// Those of a listing, if it has any; `wanted` is the user's schema.
    pub(crate) fn of(listing: &Listing, wanted: Option<&Schema>) -> Result<Option<Self>> {
        let Some(names) =
            listing.partitions.values().next().map(|p| p.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>())
        else {
            return Ok(None);
        };
        let mut texts = HashMap::new();
        for file in &listing.files {
            let pairs = listing.partitions.get(&file.location).map(Vec::as_slice).unwrap_or_default();
            if !pairs.iter().map(|(k, _)| k).eq(&names) {
                return Err(Error::Unsupported {
                    what: format!("`{}` beside files in folders `{}=…`", file.location, names.join("=…/")),
                    instead: "put every file into folders of the same keys, or address them apart".into(),
                });
            }
            texts.insert(file.location.clone(), pairs.iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>());
        }
        let whole = |i: usize| {
            let mut column = texts.values().filter_map(|v| v.get(i)).filter(|v| **v != NULL).peekable();
            column.peek().is_some() && column.all(|v| v.parse::<i64>().is_ok())
        };
        let field = |(i, name): (usize, &String)| {
            let wanted = wanted.and_then(|s| s.field_with_name(name).ok()).map(|f| f.data_type().clone());
            let found = if whole(i) { DataType::Int64 } else { DataType::Utf8 };
            Arc::new(Field::new(name, wanted.unwrap_or(found), true))
        };
        let fields: Vec<FieldRef> = names.iter().enumerate().map(field).collect();
        let value = |field: &FieldRef, text: &str| match text {
            NULL => Ok(ScalarValue::try_from(field.data_type())?),
            text => ScalarValue::try_from_string(text.to_owned(), field.data_type()).map_err(Error::from),
        };
        let mut values = HashMap::new();
        for (path, texts) in texts {
            let row = fields.iter().zip(texts).map(|(field, text)| value(field, text)).collect::<Result<_>>()?;
            values.insert(path, row);
        }
        Ok(Some(Self { fields, values }))
    }

    /// A schema without these columns.
    pub(crate) fn without(&self, schema: &Schema) -> SchemaRef {
        let own = |f: &&FieldRef| self.fields.iter().any(|own| own.name() == f.name());
        Arc::new(Schema::new(schema.fields().iter().filter(|f| !own(f)).cloned().collect::<Vec<_>>()))
    }

    /// Refuses files that have a column of the same name: two values for one cell.
    pub(crate) fn check(&self, stored: &Schema) -> Result<()> {
        match self.fields.iter().find(|own| stored.field_with_name(own.name()).is_ok()) {
            None => Ok(()),
            Some(both) => Err(Error::Unsupported {
                what: format!("column `{0}` both in the files and in the folders' names `{0}=…`", both.name()),
                instead: "write the files without it, or rename the folders".into(),
            }),
        }
    }
}

/// A table over files, with the folders' columns behind the files' own.
#[derive(Debug)]
pub(crate) struct HiveTable {
    files: ListingTable,
    stored: SchemaRef,
    schema: SchemaRef,
    columns: Columns,
}

impl HiveTable {
    /// `files` is the table of the same files without these columns.
    pub(crate) fn new(files: ListingTable, columns: Columns) -> Self {
        let stored = files.schema();
        let fields = stored.fields().iter().chain(&columns.fields).cloned().collect::<Vec<_>>();
        Self { files, stored, schema: Arc::new(Schema::new(fields)), columns }
    }

    fn names(&self) -> Vec<&str> {
        self.columns.fields.iter().map(|f| f.name().as_str()).collect()
    }

    /// The file with its values, unless a filter on them leaves it out.
    fn place(
        &self,
        mut file: PartitionedFile,
        filters: &[Expr],
        schema: &DFSchema,
    ) -> DfResult<Option<PartitionedFile>> {
        file.partition_values = self.columns.values.get(&file.object_meta.location).cloned().unwrap_or_default();
        // Anew, because statistics go over the folders' columns too.
        if let Some(statistics) = file.statistics.take() {
            file = file.with_statistics(statistics);
        }
        filter_partitioned_file(file, filters, schema)
    }
}

#[async_trait]
impl TableProvider for HiveTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        let names = self.names();
        let of = |f: &&Expr| match expr_applicable_for_cols(&names, f) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(of).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let fields = Schema::new(self.columns.fields.clone());
        let schema = DFSchema::try_from(fields)?;
        let listed = self.files.list_files_for_scan(state, &[], None).await?;
        let mut groups = Vec::new();
        for group in listed.file_groups {
            let placed = group.into_inner().into_iter().map(|file| self.place(file, filters, &schema));
            let left: Vec<PartitionedFile> = placed.filter_map(DfResult::transpose).collect::<DfResult<_>>()?;
            if !left.is_empty() {
                groups.push(FileGroup::new(left));
            }
        }
        let Some(url) = self.files.table_paths().first().filter(|_| !groups.is_empty()) else {
            let schema = datafusion::physical_plan::project_schema(&self.schema, projection)?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        };
        let table = TableSchema::builder(Arc::clone(&self.stored));
        let table = table.with_table_partition_cols(self.columns.fields.clone()).build();
        let format = &self.files.options().format;
        let scan = FileScanConfigBuilder::new(url.object_store(), format.file_source(table))
            .with_file_groups(groups)
            .with_statistics(Statistics::new_unknown(&self.schema))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        format.create_physical_plan(state, scan).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_tell_their_keys() {
        let pairs = |path: &str| keys(path.split('/'));
        let expected = [("year".to_owned(), "2024".to_owned()), ("city".to_owned(), "a b/c".to_owned())];
        assert_eq!(pairs("year=2024/city=a%20b%2Fc"), expected);
        assert!(pairs("year=2024/plain").is_empty());
        assert!(pairs("=x").is_empty());
        assert_eq!(decode("100%"), "100%");
    }
}
