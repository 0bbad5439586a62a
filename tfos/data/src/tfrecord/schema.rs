//! Which Arrow type a feature has: inferred from the first records, or written down by the user.
//!
//! Inference: a feature that always holds one value is a scalar; always the same n > 1, a `FixedSizeList(n)`; anything
//! else a `List`. Int64List, FloatList and BytesList give int64, float32 and binary. Every column is nullable (a record
//! may lack a feature) and columns are sorted by name, since a protobuf map has no order.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::example::{Kind, Wire, for_each_feature};
use crate::error::{Error, ExampleFault, Result};

/// How many records inference looks at unless told otherwise.
pub const SAMPLE: usize = 100;

/// What the records so far say about each feature.
#[derive(Debug, Default)]
pub struct Inference {
    features: BTreeMap<String, Seen>,
    records: usize,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    kind: Kind,
    min: usize,
    max: usize,
}

impl Inference {
    /// Takes one more record into account.
    pub fn add(&mut self, record: &[u8]) -> Wire<()> {
        self.records += 1;
        // Of duplicate keys the last counts, as in the decoder.
        let mut last = BTreeMap::new();
        for_each_feature(record, |name, feature| {
            last.insert(name, feature);
            Ok(())
        })?;
        for (name, feature) in last {
            let n = feature.count()?;
            let name = std::str::from_utf8(name)
                .map_err(|_| Box::new(ExampleFault::Malformed { at: 0, what: "a feature name is not UTF-8" }))?;
            let seen = self.features.entry(name.to_owned()).or_insert(Seen { kind: feature.kind, min: n, max: n });
            if seen.kind != feature.kind {
                return Err(Box::new(ExampleFault::Kind {
                    feature: name.to_owned(),
                    wanted: seen.kind.name().to_owned(),
                    found: feature.kind.name(),
                    found_hint: feature.kind.hint(),
                }));
            }
            seen.min = seen.min.min(n);
            seen.max = seen.max.max(n);
        }
        Ok(())
    }

    /// Records taken into account so far.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The schema that the records so far suggest.
    pub fn schema(&self) -> SchemaRef {
        let field = |(name, seen): (&String, &Seen)| {
            let value = match seen.kind {
                Kind::Bytes => DataType::Binary,
                Kind::Float => DataType::Float32,
                Kind::Int64 => DataType::Int64,
            };
            let data_type = match (seen.min, seen.max) {
                (1, 1) => value,
                (n, m) if n == m && n > 1 => match i32::try_from(n) {
                    Ok(n) => fixed(value, n),
                    Err(_) => list(value),
                },
                _ => list(value),
            };
            Field::new(name, data_type, true)
        };
        Arc::new(Schema::new(self.features.iter().map(field).collect::<Vec<_>>()))
    }
}

/// Infers from records in memory; see [`Inference`].
pub fn infer<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Wire<SchemaRef> {
    let mut inference = Inference::default();
    records.into_iter().try_for_each(|r| inference.add(r))?;
    Ok(inference.schema())
}

/// Reads a schema in the user's words: `name:type` by commas, where a type is followed by `[n]` for exactly n values or
/// `[]` for any number; `array<type>` and an outer `struct<...>` are understood too.
pub fn parse_schema(text: &str) -> Result<SchemaRef> {
    let text = text.trim();
    let inner = text.strip_prefix("struct<").and_then(|t| t.strip_suffix('>')).unwrap_or(text);
    let mut fields: Vec<Field> = Vec::new();
    for part in inner.split(',') {
        let fail = |reason| Error::SchemaText { at: part.trim().to_owned(), reason };
        let (name, kind) = part.rsplit_once(':').ok_or_else(|| fail("no `name:type`"))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(fail("the name is empty"));
        }
        if fields.iter().any(|f| f.name() == name) {
            return Err(fail("the name occurs twice"));
        }
        fields.push(Field::new(name, parse_type(kind.trim()).map_err(fail)?, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn parse_type(text: &str) -> std::result::Result<DataType, &'static str> {
    if let Some(inner) = text.strip_prefix("array<").and_then(|t| t.strip_suffix('>')) {
        return scalar(inner).map(list);
    }
    let Some((inner, size)) = text.strip_suffix(']').and_then(|t| t.split_once('[')) else {
        return scalar(text);
    };
    let value = scalar(inner.trim())?;
    match size.trim() {
        "" => Ok(list(value)),
        n => match n.parse() {
            Ok(n) if n > 0 => Ok(fixed(value, n)),
            _ => Err("the size in brackets is not a positive number"),
        },
    }
}

const NAMES: [(&str, DataType); 25] = [
    ("binary", DataType::Binary),
    ("bytes", DataType::Binary),
    ("string", DataType::Utf8),
    ("utf8", DataType::Utf8),
    ("large_binary", DataType::LargeBinary),
    ("large_string", DataType::LargeUtf8),
    ("boolean", DataType::Boolean),
    ("bool", DataType::Boolean),
    ("int8", DataType::Int8),
    ("tinyint", DataType::Int8),
    ("int16", DataType::Int16),
    ("smallint", DataType::Int16),
    ("int32", DataType::Int32),
    ("int", DataType::Int32),
    ("int64", DataType::Int64),
    ("bigint", DataType::Int64),
    ("long", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float32", DataType::Float32),
    ("float", DataType::Float32),
    ("float64", DataType::Float64),
    ("double", DataType::Float64),
];

fn scalar(text: &str) -> std::result::Result<DataType, &'static str> {
    NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, t)| t.clone()).ok_or(
        "the type is none of binary, string, bool, int8 to int64, uint8 to uint64, float32, float64, large_binary, large_string",
    )
}

/// Writes a schema so that [`parse_schema`] gives it back; columns of other types are an error.
pub fn schema_text(schema: &Schema) -> Result<String> {
    let one = |t: &DataType| NAMES.iter().find(|(_, known)| known == t).map(|(name, _)| *name).ok_or(());
    let parts = schema.fields().iter().map(|field| {
        let kind = match field.data_type() {
            DataType::List(item) => one(item.data_type()).map(|t| format!("{t}[]")),
            DataType::FixedSizeList(item, n) => one(item.data_type()).map(|t| format!("{t}[{n}]")),
            other => one(other).map(str::to_owned),
        };
        let kind = kind.map_err(|()| Error::Unsupported {
            what: format!("column `{}` of type {} in a schema text", field.name(), field.data_type()),
            instead: "cast it in the query".into(),
        })?;
        Ok(format!("{}:{kind}", field.name()))
    });
    Ok(parts.collect::<Result<Vec<_>>>()?.join(","))
}

fn list(value: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(value, true)))
}

fn fixed(value: DataType, n: i32) -> DataType {
    DataType::FixedSizeList(Arc::new(Field::new_list_field(value, true)), n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // SimpleTypeParserTest: parse(schema.simpleString) == schema
    fn schema_text_round_trip() {
        let all = NAMES.iter().map(|(name, _)| format!("a_{name}:{name},l_{name}:{name}[],f_{name}:{name}[3]"));
        let schema = parse_schema(&all.collect::<Vec<_>>().join(",")).unwrap();
        assert_eq!(parse_schema(&schema_text(&schema).unwrap()).unwrap(), schema);
    }

    #[test]
    fn sparks_simple_string() {
        let spark = "struct<byte:tinyint,label:int,data:array<float>,flag:boolean,name:string,raw:binary>";
        let ours = "byte:int8,label:int32,data:float32[],flag:bool,name:string,raw:binary";
        assert_eq!(parse_schema(spark).unwrap(), parse_schema(ours).unwrap());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("a", "name:type"),
            ("a:int64,b:flot32", "none of"),
            ("x:int8[0]", "positive"),
            (":int8", "empty"),
            ("a:int8,a:int8", "twice"),
            ("", "name:type"),
        ] {
            let error = parse_schema(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
