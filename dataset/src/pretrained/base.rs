//! The base of a job: a pretrained language model, a pretrained visual encoder and maybe a pretrained
//! Q-Former, held against what the job says of them before anything large is read.

use mks2_proto::job::{Decoder, Job, Pretrained};
use mks2_proto::params::{self, ParamSpec};
use serde::Serialize;
use serde_json::{Map, Value};

use super::config::{self, Described, Language};
use super::tensors::Tensors;
use super::tokens::{self, TokenizerFiles};
use super::{Folder, PretrainedError, Result, extras};

/// The models and the tokenizer, not yet read but for configurations and headers.
#[derive(Clone, Debug)]
pub struct Base {
    /// The language model.
    pub decoder: Part,
    /// The visual encoder.
    pub vision: Part,
    /// The Q-Former between them, if the job takes one.
    pub q_former: Option<Part>,
    /// The language model's tokenizer.
    pub tokenizer: TokenizerFiles,
}

/// One of the models.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its tensors.
    pub tensors: Tensors,
    /// Those that the job wants of them.
    pub specs: Vec<ParamSpec>,
    /// Names of those that the model does not know.
    pub left_out: Vec<String>,
}

impl Part {
    /// Looks for all tensors of a description in a folder. Others are refused where that is `strict`, or
    /// else left out.
    ///
    /// # Errors
    /// [`PretrainedError::Tensors`], with the names of all that differ.
    pub async fn open(folder: &Folder, described: &Described, strict: bool) -> Result<Self> {
        let specs = match described {
            Described::Decoder(language) => params::decoder(&language.shape, language.vocab_size),
            Described::Vision(vision) => params::vision(vision),
            Described::QFormer(found) => params::q_former(&found.shape, found.features),
            Described::Mks2(model) => model.specs(),
        };
        let tensors = Tensors::open(folder).await?;
        let is_extra = |name: &str| extras::is_extra(described, name);
        let left_out = match strict {
            true => Vec::new(),
            false => tensors.differences(&specs, is_extra).unexpected,
        };
        tensors.check(&specs, |name| !strict || is_extra(name))?;
        Ok(Self {
            tensors,
            specs,
            left_out,
        })
    }
}

impl Base {
    /// Finds the models and the tokenizer of a `pretrained` stage.
    ///
    /// # Errors
    /// When a folder is not whole, holds another kind of model, or another shape than `[model]` says.
    pub async fn open(job: &Job, stage: &Pretrained) -> Result<Self> {
        let folder = Folder::open(&stage.decoder)?;
        let described = read(&folder).await?;
        let Described::Decoder(language) = &described else {
            return Err(folder.other_kind(described.kind(), "language model"));
        };
        agree(&folder, "model.decoder", language_differs(job, language))?;
        let decoder = Part::open(&folder, &described, stage.strict).await?;
        let tokenizer = tokens::read(&folder).await?;
        let folder = Folder::open(&stage.vision)?;
        let described = read(&folder).await?;
        let Described::Vision(shape) = &described else {
            return Err(folder.other_kind(described.kind(), "visual encoder"));
        };
        agree(
            &folder,
            "model.vision",
            differences(&job.model.vision, shape),
        )?;
        let vision = Part::open(&folder, &described, stage.strict).await?;
        let q_former = match &stage.q_former {
            Some(url) => Some(q_former((job, stage), url).await?),
            None => None,
        };
        Ok(Self {
            decoder,
            vision,
            q_former,
            tokenizer,
        })
    }
}

async fn q_former((job, stage): (&Job, &Pretrained), url: &str) -> Result<Part> {
    let folder = Folder::open(url)?;
    let described = read(&folder).await?;
    let Described::QFormer(found) = &described else {
        return Err(folder.other_kind(described.kind(), "Q-Former"));
    };
    let mut differences = differences(&job.model.bridge, &found.shape);
    let (width, features) = (job.model.vision.hidden_size, found.features);
    if width != features {
        differences.push(format!(
            "the Q-Former looks at features {features} wide, and model.vision.hidden_size is {width}"
        ));
    }
    agree(&folder, "model.bridge", differences)?;
    Part::open(&folder, &described, stage.strict).await
}

/// What a folder's configuration describes.
///
/// # Errors
/// As for [`config::read`].
pub async fn read(folder: &Folder) -> Result<Described> {
    let json = folder.config().await?;
    config::read(&json, &folder.name_of(config::FILE_NAME))
}

fn agree(folder: &Folder, table: &'static str, differences: Vec<String>) -> Result<()> {
    match differences.is_empty() {
        true => Ok(()),
        false => Err(PretrainedError::Shape {
            file: folder.name_of(config::FILE_NAME),
            location: folder.location().to_owned(),
            table,
            differences: differences.join("; "),
        }),
    }
}

fn language_differs(job: &Job, language: &Language) -> Vec<String> {
    // How long texts are is the job's to say, and a head's size may be said or follow.
    let plain = |shape: &Decoder| Decoder {
        max_text_tokens: 0,
        head_dim: Some(shape.head()),
        ..shape.clone()
    };
    let mut differences = differences(&plain(&job.model.decoder), &plain(&language.shape));
    let (wanted, most) = (
        job.model.decoder.max_text_tokens,
        language.shape.max_text_tokens,
    );
    if wanted > most {
        differences.push(format!(
            "max_text_tokens is {wanted}, and at most {most} there"
        ));
    }
    let (ours, theirs) = (job.tokenizer.vocab_size, language.vocab_size);
    if ours != theirs {
        differences.push(format!(
            "tokenizer.vocab_size is {ours}, and {theirs} there"
        ));
    }
    differences
}

/// Fields that differ, in words.
fn differences<T: Serialize>(ours: &T, theirs: &T) -> Vec<String> {
    let (ours, theirs) = (fields(ours), fields(theirs));
    let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    names.sort();
    names.dedup();
    let words = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
    names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            let (ours, theirs) = (words(ours.get(name)), words(theirs.get(name)));
            format!("{name} is {ours}, and {theirs} there")
        })
        .collect()
}

fn fields<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}
