//! How `mks2` asks the program that computes to write a model for other programs: one line of JSON over
//! its standard input, one line back.

use serde::{Deserialize, Serialize};

use crate::generate::{Source, Words};

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The model.
    pub model: Source,
    /// As what.
    pub form: Form,
    /// Where: a folder of this machine, which is there and empty.
    pub folder: String,
    /// Threads of libtorch.
    pub threads: u32,
}

/// What other programs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Form {
    /// A folder for transformers.
    Hf {
        /// Type of the tensors.
        dtype: Dtype,
        /// Bytes above which files are split at the next tensor.
        max_shard_bytes: u64,
        /// Adapters become part of their matrices.
        merge: bool,
    },
    /// The adapters of the language model, for PEFT.
    Peft,
}

/// Types of tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As they were trained.
    #[default]
    Fp32,
    /// Half as large, rounded.
    Bf16,
}

impl Dtype {
    /// What PyTorch calls it.
    #[must_use]
    pub fn of_pytorch(self) -> &'static str {
        match self {
            Self::Fp32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Told {
    /// It is there.
    Written(Written),
    /// It is not.
    Failed {
        /// Why not.
        why: Words,
    },
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// What it is, for a person.
    pub what: String,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Files with tensors.
    pub files: u64,
    /// The id of adapters, by which a job can name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What is not in it, if anything is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_survive_a_line() {
        let order = Order {
            model: Source::Folder {
                url: "a\nb".into(),
                strict: true,
            },
            form: Form::Hf {
                dtype: Dtype::Bf16,
                max_shard_bytes: 7,
                merge: true,
            },
            folder: "out".into(),
            threads: 2,
        };
        let line = serde_json::to_string(&order).expect("JSON");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Order>(&line).expect("read"), order);
        let told = Told::Written(Written {
            what: "llama".into(),
            parameters: 3,
            bytes: 12,
            files: 1,
            id: None,
            without: None,
        });
        let line = serde_json::to_string(&told).expect("JSON");
        assert_eq!(serde_json::from_str::<Told>(&line).expect("read"), told);
    }
}
