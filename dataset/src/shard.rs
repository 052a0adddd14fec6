//! Parquet shards: schema, rows to record batches and back, and the fixed writer settings.
//!
//! Equal rows give equal bytes: no timestamps, fixed settings, a fixed `created_by`. The
//! key-value metadata `huggingface` lets Hugging Face `datasets` show the pictures.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value};

use crate::row::Row;

mod sink;

pub(crate) use sink::ObjectSink;

/// What shards say of their writer; part of the bytes, so it never changes with the version.
const CREATED_BY: &str = "mks2 corpus version 1";

/// The name under which Hugging Face `datasets` looks for the features.
const FEATURES: &str = "huggingface";

/// Text columns besides the key, in the order of the schema.
const TEXTS: [&str; 3] = ["caption", "question", "answer"];

/// The columns of a shard.
#[must_use]
pub fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let columns = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("image", DataType::Struct(picture_fields()), true),
        text(TEXTS[0]),
        text(TEXTS[1]),
        text(TEXTS[2]),
        Field::new("metadata", DataType::Utf8, false),
    ];
    // pyarrow takes the schema's metadata from here and not from the file's.
    let metadata = HashMap::from([(FEATURES.to_owned(), features())]);
    Arc::new(Schema::new_with_metadata(columns, metadata))
}

fn picture_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}

/// The features, as Hugging Face `datasets` reads them from the file.
fn features() -> String {
    let text = serde_json::json!({"dtype": "string", "_type": "Value"});
    let mut features =
        Map::from_iter([("image".to_owned(), serde_json::json!({"_type": "Image"}))]);
    for name in ["key", TEXTS[0], TEXTS[1], TEXTS[2], "metadata"] {
        features.insert(name.to_owned(), text.clone());
    }
    format!(r#"{{"info":{{"features":{}}}}}"#, canonical(&features))
}

fn properties() -> Result<WriterProperties, ParquetError> {
    let pictures = ColumnPath::from(vec!["image".to_owned(), "bytes".to_owned()]);
    let features = KeyValue::new(FEATURES.to_owned(), features());
    Ok(WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_key_value_metadata(Some(vec![features]))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        // Row groups end where the importer says, never on their own.
        .set_max_row_group_row_count(Some(usize::MAX))
        .set_max_row_group_bytes(None)
        .set_offset_index_disabled(false)
        // Pages of about a megabyte even when single values are large.
        .set_write_batch_size(16)
        .set_column_compression(pictures.clone(), Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(pictures, EnabledStatistics::None)
        .build())
}

/// A parquet writer with the settings of shards.
pub(crate) fn writer<W: std::io::Write + Send>(to: W) -> Result<ArrowWriter<W>, ParquetError> {
    ArrowWriter::try_new(to, schema(), Some(properties()?))
}

/// Rows as a record batch.
///
/// # Errors
/// In words, if the columns do not fit together (more than 2 GiB of pictures).
pub(crate) fn to_batch(rows: &[Row]) -> Result<RecordBatch, String> {
    let pictures: usize = rows
        .iter()
        .filter_map(|row| row.image.as_ref())
        .map(Bytes::len)
        .sum();
    if i32::try_from(pictures).is_err() {
        return Err(format!(
            "{pictures} bytes of pictures do not fit into one row group"
        ));
    }
    let texts = |of: fn(&Row) -> Option<&String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let metadata = rows.iter().map(|row| Some(canonical(&row.metadata)));
    let columns: Vec<ArrayRef> = vec![
        texts(|row| Some(&row.key)),
        Arc::new(picture_column(rows)),
        texts(|row| row.caption.as_ref()),
        texts(|row| row.question.as_ref()),
        texts(|row| row.answer.as_ref()),
        Arc::new(metadata.collect::<StringArray>()),
    ];
    RecordBatch::try_new(schema(), columns).map_err(|error| error.to_string())
}

/// A JSON object as text with its names sorted, at every depth, whatever order the map keeps.
fn canonical(object: &Map<String, Value>) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(object) => {
                let ordered: BTreeMap<_, _> = object.iter().collect();
                ordered
                    .into_iter()
                    .map(|(name, value)| (name.clone(), sorted(value)))
                    .collect()
            }
            Value::Array(items) => items.iter().map(sorted).collect(),
            plain => plain.clone(),
        }
    }
    sorted(&Value::Object(object.clone())).to_string()
}

fn picture_column(rows: &[Row]) -> StructArray {
    let mut bytes = BinaryBuilder::new();
    let mut paths = StringBuilder::new();
    for row in rows {
        bytes.append_option(row.image.as_deref());
        paths.append_null();
    }
    let present: Vec<bool> = rows.iter().map(|row| row.image.is_some()).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(bytes.finish()), Arc::new(paths.finish())];
    StructArray::new(picture_fields(), columns, Some(NullBuffer::from(present)))
}

/// Rows of a record batch; the first has index `first`.
///
/// # Errors
/// In words: a column that is missing or of another type, a key that is null, metadata that is
/// no JSON object.
pub(crate) fn from_batch(batch: &RecordBatch, first: u64) -> Result<Vec<Row>, String> {
    let keys = texts(batch, "key")?;
    let pictures: &StructArray = column(batch, "image")?;
    let bytes = pictures
        .column_by_name("bytes")
        .and_then(|bytes| bytes.as_any().downcast_ref::<BinaryArray>())
        .ok_or("the column image has no binary field bytes")?;
    let [captions, questions, answers] = [
        texts(batch, TEXTS[0])?,
        texts(batch, TEXTS[1])?,
        texts(batch, TEXTS[2])?,
    ];
    let metadata = texts(batch, "metadata")?;
    let row = |at: usize| -> Result<Row, String> {
        let index = first + at as u64;
        let key = text(keys, at).ok_or_else(|| format!("row {index} has no key"))?;
        let has_picture = pictures.is_valid(at) && bytes.is_valid(at);
        let fields = serde_json::from_str(metadata.value(at))
            .map_err(|error| format!("the metadata of row {index} ({key}): {error}"))?;
        Ok(Row {
            index,
            key,
            image: has_picture.then(|| Bytes::copy_from_slice(bytes.value(at))),
            caption: text(captions, at),
            question: text(questions, at),
            answer: text(answers, at),
            metadata: fields,
        })
    };
    (0..batch.num_rows()).map(row).collect()
}

/// The keys of a batch.
pub(crate) fn keys(batch: &RecordBatch) -> Result<Vec<String>, String> {
    let keys = texts(batch, "key")?;
    let key = |at| text(keys, at).ok_or_else(|| format!("row {at} of its group has no key"));
    (0..batch.num_rows()).map(key).collect()
}

fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, String> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref::<T>())
        .ok_or_else(|| format!("the column {name} is missing or has another type"))
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    column(batch, name)
}

fn text(column: &StringArray, at: usize) -> Option<String> {
    column.is_valid(at).then(|| column.value(at).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        (0..5u64)
            .map(|index| Row {
                index,
                key: format!("key-{index}"),
                image: (index != 2).then(|| Bytes::from(vec![u8::try_from(index).unwrap(); 9])),
                caption: (index != 3).then(|| format!("caption {index}")),
                question: (index == 3).then(|| "what?".into()),
                answer: (index == 3).then(|| "that".into()),
                metadata: serde_json::json!({"n": index}).as_object().unwrap().clone(),
            })
            .collect()
    }

    #[test]
    fn rows_survive_a_batch() {
        let rows = rows();
        assert_eq!(from_batch(&to_batch(&rows).unwrap(), 0).unwrap(), rows);
    }

    #[test]
    fn equal_rows_give_equal_bytes() {
        let file = || {
            let mut writer = writer(Vec::new()).unwrap();
            writer.write(&to_batch(&rows()).unwrap()).unwrap();
            writer.flush().unwrap();
            writer.write(&to_batch(&rows()).unwrap()).unwrap();
            writer.into_inner().unwrap()
        };
        assert_eq!(file(), file());
    }

    #[test]
    fn a_foreign_schema_is_refused_in_words() {
        let foreign = RecordBatch::try_from_iter([(
            "key",
            Arc::new(StringArray::from(vec!["a"])) as ArrayRef,
        )])
        .unwrap();
        assert!(from_batch(&foreign, 0).unwrap_err().contains("image"));
    }
}
