//! What can be wrong with the folder of a model.

use mks2_proto::failure::Failure;

use super::adapter;
use super::tensors::Differences;

const ADAPTERS: &str = "the adapters cannot be taken in";

/// What can be wrong with the folder of a model.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] crate::error::Error),
    /// A file is not there.
    #[error("there is no {file}")]
    Missing {
        /// The file.
        file: String,
    },
    /// The weights are there in pickle alone.
    #[error("{file} is a pickle, which can run any code when it is read")]
    Pickle {
        /// The file.
        file: String,
        /// The folder.
        folder: String,
    },
    /// A file is not what it should be.
    #[error("{file} cannot be used: {why}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong, with the tensor or key if it is known.
        why: String,
    },
    /// A model of another kind.
    #[error("{file} describes a model that is not supported: {why}")]
    Unsupported {
        /// The file.
        file: String,
        /// Which kind or setting.
        why: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A model of a supported kind, in the place of another kind.
    #[error("{file} describes {found}, and a {wanted} is wanted")]
    OtherKind {
        /// The file.
        file: String,
        /// What it describes.
        found: String,
        /// What was to be there.
        wanted: &'static str,
    },
    /// A model of another shape than the job says.
    #[error("{file} describes another model than [{table}] of the job: {differences}")]
    Shape {
        /// The file.
        file: String,
        /// Its folder.
        location: String,
        /// The table of the job.
        table: &'static str,
        /// Both values of each field that differs.
        differences: String,
    },
    /// A language model without its tokenizer.
    #[error("there is no tokenizer.json in {folder}")]
    NoTokenizer {
        /// The folder.
        folder: String,
    },
    /// Adapters that are not those of a stage.
    #[error("the adapters in {folder} are not those of the stage: {differences}")]
    Adapter {
        /// The folder.
        folder: String,
        /// What differs.
        differences: String,
    },
    /// The tensors are not those of the configuration.
    #[error("the tensors in {folder} are not those of its config.json: {differences}")]
    Tensors {
        /// The folder.
        folder: String,
        /// Which are missing, unexpected or of another shape.
        differences: Differences,
    },
}

impl From<PretrainedError> for Failure {
    fn from(error: PretrainedError) -> Self {
        let what = "the pretrained model cannot be used";
        let why = error.to_string();
        if let Some(cure) = cure_of_adapters(&error) {
            return Self::checkpoint(ADAPTERS, why, cure).with_source(error);
        }
        let failure = match error {
            PretrainedError::Store(inner) => return inner.into(),
            PretrainedError::Missing { .. } => Self::checkpoint(
                what,
                why,
                "name a folder with config.json and safetensors, as `huggingface-cli download` writes it",
            ),
            PretrainedError::Pickle { ref folder, .. } => Self::checkpoint(
                what,
                why,
                format!(
                    "convert it where you trust it: python -c \"from transformers import AutoModel; \
                     AutoModel.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
                ),
            ),
            PretrainedError::Damaged { .. } => {
                Self::checkpoint(what, why, "download the folder again")
            }
            PretrainedError::Unsupported { supported, .. } => {
                Self::checkpoint(what, why, format!("supported are {supported}"))
            }
            PretrainedError::OtherKind { .. } => Self::settings(
                what,
                why,
                "in [stage.pretrained], decoder is a language model, vision a visual encoder and q_former a BLIP-2",
            ),
            PretrainedError::Shape { ref location, .. } => Self::settings(
                what,
                why,
                format!("take the tables that `mks2 model show {location} --job` prints"),
            ),
            PretrainedError::NoTokenizer { ref folder } => Self::checkpoint(
                what,
                why,
                format!(
                    "write it from what is there: python -c \"from transformers import AutoTokenizer; \
                     AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
                ),
            ),
            PretrainedError::Adapter { .. } => Self::settings(
                ADAPTERS,
                why,
                "set lora_rank, lora_alpha, adapter_blocks and adapt_attention of the stage as they have them",
            ),
            PretrainedError::Tensors {
                ref differences, ..
            } => Self::checkpoint(what, why, cure_of_tensors(differences)),
        };
        failure.with_source(error)
    }
}

fn cure_of_tensors(differences: &Differences) -> &'static str {
    match differences.types.is_empty() {
        true => {
            "download the folder again, or name the folder of the model that config.json describes"
        }
        false => "name a folder in which the model is in F32, F16 or BF16, not a quantised one",
    }
}

/// What to do where files that PEFT writes are missing, or are pickles.
fn cure_of_adapters(error: &PretrainedError) -> Option<String> {
    let is_of_adapters = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        [adapter::SETTINGS, adapter::TENSORS, adapter::PICKLE].contains(&name)
    };
    let (settings, tensors) = (adapter::SETTINGS, adapter::TENSORS);
    match error {
        PretrainedError::Missing { file } if is_of_adapters(file) => Some(format!(
            "name a folder with {settings} and {tensors}, as PEFT and `mks2 export peft` write it"
        )),
        PretrainedError::Pickle { file, folder } if is_of_adapters(file) => Some(format!(
            "convert it: python -c \"import torch; from safetensors.torch import save_file; \
             save_file(torch.load('{folder}/{}', weights_only=True), '{folder}/{tensors}')\"",
            adapter::PICKLE
        )),
        _ => None,
    }
}
