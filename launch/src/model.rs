//! `mks2 model`: pretrained models as Hugging Face ships them.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use mks2_dataset::pretrained::Folder;
use mks2_dataset::pretrained::base::{self, Part};
use mks2_dataset::pretrained::config::{Described, Language, QFormer};
use mks2_dataset::pretrained::mks2::{Mks2, SecondHalf};
use mks2_proto::failure::Failure;
use mks2_proto::job::{Bridge, Decoder, RopeType, Vision};
use mks2_proto::params;
use serde::Serialize;

use crate::output::Output;
use crate::units::{bytes, count, plural, short};

const SHOW_HELP: &str = "\
Only the configuration and the headers of the files are read, from any store. A folder whose tensors
are not those of its configuration is refused with their names (exit 8), and so is one in pickle.

Examples:
  mks2 model show models/Llama-2-7b-hf
  mks2 model show s3://bucket/models/clip-vit-large-patch14 --json
  mks2 model show models/Llama-2-7b-hf --job
      The tables of a job file that starts from this model.";

/// What can be asked about models.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Show what a pretrained model is, and check that all of it is there
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
}

/// `mks2 model show`
#[derive(Clone, Debug, Args)]
pub(crate) struct ShowArgs {
    /// Path or URL of the folder with config.json and safetensors
    url: String,
    /// Leave out tensors that the model does not know, instead of refusing them
    #[arg(long)]
    no_strict: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Print the tables of a job file that starts from this model
    #[arg(long, conflicts_with = "json")]
    job: bool,
}

/// Runs one of the commands.
///
/// # Errors
/// Exit 8 for a folder that cannot be used, exit 5 for trouble with a store.
pub(crate) async fn run(command: ModelCommand, output: &Output) -> Result<(), Failure> {
    let ModelCommand::Show(args) = command;
    let folder = Folder::open(&args.url).map_err(Failure::from)?;
    let described = base::read(&folder).await?;
    let part = Part::open(&folder, &described, !args.no_strict).await?;
    if !part.left_out.is_empty() {
        output.note(&format!(
            "left out, since the model does not know it: {}",
            part.left_out.join(", ")
        ));
    }
    let shown = Shown::of(&folder, &described, &part);
    if args.job {
        output.result(&tables(described)?);
    } else if args.json || output.is_json() {
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|error| Failure::internal("the model has no JSON", error.to_string()))?;
        output.result(&text);
    } else {
        output.result(&shown.render(&described));
    }
    Ok(())
}

/// Tables of a job file.
#[derive(Debug, Serialize)]
struct Tables {
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<TokenizerTable>,
    model: ModelTables,
}

#[derive(Debug, Serialize)]
struct TokenizerTable {
    vocab_size: u32,
}

#[derive(Debug, Default, Serialize)]
struct ModelTables {
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<Decoder>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vision: Option<Vision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<Bridge>,
}

/// What a job file says of a model.
fn tables(described: Described) -> Result<String, Failure> {
    let tables = match described {
        Described::Decoder(language) => Tables {
            tokenizer: Some(TokenizerTable {
                vocab_size: language.vocab_size,
            }),
            model: ModelTables {
                decoder: Some(language.shape),
                ..ModelTables::default()
            },
        },
        Described::Vision(vision) => Tables {
            tokenizer: None,
            model: ModelTables {
                vision: Some(vision),
                ..ModelTables::default()
            },
        },
        Described::QFormer(found) => Tables {
            tokenizer: None,
            model: ModelTables {
                bridge: Some(found.shape),
                ..ModelTables::default()
            },
        },
        Described::Mks2(_) => {
            return Err(Failure::usage(
                "there are no tables of a job file for it",
                "a job starts from a language model and a visual encoder, and this is a model of MKS2",
                "name the folders of those that it was made of",
            ));
        }
    };
    let comment = match tables.tokenizer {
        Some(_) => {
            "# max_text_tokens is the longest text that the model was made for. Every text is padded to\n\
                    # it: choose what yours need.\n"
        }
        None => "",
    };
    toml::to_string(&tables)
        .map(|text| format!("{comment}{text}"))
        .map_err(|error| Failure::internal("the model has no TOML", error.to_string()))
}

/// What there is of a model.
#[derive(Debug, Serialize)]
struct Shown {
    url: String,
    family: String,
    parameters: u64,
    tensors: usize,
    files: usize,
    bytes: u64,
    /// Bytes by type of element.
    types: BTreeMap<String, u64>,
    /// Shape, in the words of a job file.
    shape: serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    vocab_size: Option<u32>,
}

impl Shown {
    fn of(folder: &Folder, described: &Described, part: &Part) -> Self {
        let (tensors, specs) = (&part.tensors, &part.specs);
        let wanted: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let places = tensors.iter().filter(|(name, _)| wanted.contains(name));
        let places: Vec<_> = places.map(|(_, place)| place).collect();
        let files: BTreeSet<_> = places.iter().map(|place| &place.file).collect();
        let mut types = BTreeMap::new();
        for place in &places {
            let kind = format!("{:?}", place.dtype).to_lowercase();
            *types.entry(kind).or_insert(0) += place.range.end - place.range.start;
        }
        let (family, shape, vocab_size) = match described {
            Described::Decoder(language) => (
                language.family.clone(),
                serde_json::to_value(&language.shape),
                Some(language.vocab_size),
            ),
            Described::Vision(vision) => ("clip".to_owned(), serde_json::to_value(vision), None),
            Described::QFormer(found) => (
                "blip-2".to_owned(),
                serde_json::to_value(&found.shape),
                None,
            ),
            Described::Mks2(model) => (
                model.language.family.clone(),
                serde_json::to_value(serde_json::json!({
                    "decoder": model.language.shape,
                    "vision": model.vision,
                    "mixture": model.words,
                })),
                Some(model.language.vocab_size),
            ),
        };
        Self {
            url: folder.location().to_owned(),
            family,
            parameters: params::numel(specs),
            tensors: places.len(),
            files: files.len(),
            bytes: types.values().sum(),
            types,
            shape: shape.unwrap_or_default(),
            vocab_size,
        }
    }

    fn render(&self, described: &Described) -> String {
        let types = self.types.keys().cloned().collect::<Vec<_>>().join(", ");
        let shape = match described {
            Described::Decoder(language) => of_language(language),
            Described::Vision(vision) => of_vision(vision),
            Described::QFormer(found) => of_q_former(found),
            Described::Mks2(model) => of_mks2(model),
        };
        let kind = described.kind();
        let mut rows = vec![
            ("model", format!("{}, {kind}", self.family)),
            ("folder", self.url.clone()),
        ];
        rows.extend(shape);
        let parameters = self.parameters;
        rows.push((
            "parameters",
            format!("{} ({})", count(parameters), short(parameters).trim()),
        ));
        let files = plural(self.files as u64, "file");
        let tensors = plural(self.tensors as u64, "tensor");
        rows.push((
            "weights",
            format!("{tensors} in {files}, {} of {types}", bytes(self.bytes)),
        ));
        let lines = rows
            .into_iter()
            .map(|(name, value)| format!("{name:<11} {value}\n"));
        lines.collect::<String>() + "\nall tensors of the configuration are there\n"
    }
}

fn of_language(language: &Language) -> Vec<(&'static str, String)> {
    let shape = &language.shape;
    let tied = if shape.tie_word_embeddings {
        "tied to the embedding"
    } else {
        "its own"
    };
    let biases = if shape.qkv_bias {
        ", biases on queries, keys and values"
    } else {
        ""
    };
    let mut rows = vec![
        (
            "blocks",
            format!(
                "{}, {} wide, MLP {} wide",
                shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size
            ),
        ),
        (
            "attention",
            format!(
                "{} heads of {}, {} for keys and values{biases}",
                shape.num_attention_heads,
                shape.head(),
                shape.num_key_value_heads
            ),
        ),
        ("positions", positions(language)),
        (
            "vocabulary",
            format!("{}, output head {tied}", count(language.vocab_size.into())),
        ),
    ];
    if let Some(window) = shape.sliding_window {
        rows.insert(3, ("window", format!("{} positions", count(window.into()))));
    }
    rows
}

fn positions(language: &Language) -> String {
    let shape = &language.shape;
    let scaled = match &shape.rope_scaling {
        None => String::new(),
        Some(scaling) => {
            let which = match scaling.rope_type {
                RopeType::Linear => "all frequencies",
                RopeType::Llama3 => "low frequencies",
            };
            format!(", {which} stretched {} times", scaling.factor)
        }
    };
    let longest = count(shape.max_text_tokens.into());
    format!("up to {longest}, rotary, base {}{scaled}", shape.rope_theta)
}

fn of_mks2(model: &Mks2) -> Vec<(&'static str, String)> {
    let words = &model.words;
    let mut rows = of_language(&model.language);
    if let Some(memory) = words.memories.first() {
        let half = match words.second_half {
            SecondHalf::Memory => "in the place of the MLPs",
            SecondHalf::Experts => "beside the MLPs",
        };
        let many = words.memories.len();
        let of_them = format!("{many}, {} wide, {half}", memory.width);
        rows.push(("memories", of_them));
    }
    if let Some(lora) = &words.lora {
        rows.push((
            "adapters",
            format!("rank {}, alpha {}", lora.rank, lora.alpha),
        ));
    }
    rows.extend(model.vision.iter().flat_map(of_vision).skip(1));
    rows
}

fn of_vision(vision: &Vision) -> Vec<(&'static str, String)> {
    let grid = vision.image_size / vision.patch_size.max(1);
    vec![
        (
            "blocks",
            format!(
                "{}, {} wide, MLP {} wide, {} heads",
                vision.num_hidden_layers,
                vision.hidden_size,
                vision.intermediate_size,
                vision.num_attention_heads
            ),
        ),
        (
            "pictures",
            format!(
                "{0} x {0} pixels, {1} patches of {2} x {2}",
                vision.image_size,
                grid * grid,
                vision.patch_size
            ),
        ),
        (
            "features",
            format!("{} of a picture", vision.projection_dim),
        ),
    ]
}

fn of_q_former(found: &QFormer) -> Vec<(&'static str, String)> {
    let shape = &found.shape;
    vec![
        (
            "blocks",
            format!(
                "{}, {} wide, MLP {} wide, {} heads",
                shape.num_hidden_layers,
                shape.hidden_size,
                shape.intermediate_size,
                shape.num_attention_heads
            ),
        ),
        (
            "queries",
            format!(
                "{}, which look at features {} wide in every block of {}",
                shape.num_query_tokens, found.features, shape.cross_attention_frequency
            ),
        ),
    ]
}
