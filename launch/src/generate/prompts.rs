//! What is asked.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mks2_dataset::pretrained::Folder;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Prompt, Sampling, What};
use serde::Deserialize;

use super::GenerateArgs;
use crate::dialogue::{Message, Template};

/// Largest file of a picture, bytes; the decoder has limits of its own.
const MOST_PICTURE: u64 = 64 << 20;

/// A prompt, and what messages call it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// All but its picture.
    pub(super) prompt: Prompt,
    /// The dialogue in which it stands, as one text.
    pub(super) dialogue: Option<String>,
    /// The file of the picture that stands before it.
    pub(super) picture: Option<PathBuf>,
    /// `--prompt 2`, or `questions.jsonl, line 7`.
    pub(super) name: String,
}

/// A line of a file of prompts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    prompt: String,
    image: Option<String>,
}

/// The prompts of a command line, numbered from 0.
///
/// # Errors
/// None at all or a bad line (exit 2), pictures that cannot be read (4), a file (5).
pub(super) fn collect(args: &GenerateArgs) -> Result<Vec<Asked>, Failure> {
    let asked = match &args.file {
        Some(path) => of_file(path, args)?,
        None => of_options(args)?,
    };
    if asked.is_empty() {
        return Err(Failure::usage(
            "nothing is asked",
            "there is no prompt",
            "give --prompt TEXT, --image FILE, or --prompts FILE",
        ));
    }
    let settled = (0..).zip(asked).map(|(id, mut one)| {
        one.prompt = Prompt {
            id,
            max_tokens: args.max_tokens.map(std::num::NonZeroU32::get),
            sampling: Sampling {
                seed: args.seed.wrapping_add(id),
                ..args.sampling()
            },
            stop: args.stop.clone(),
            ..one.prompt
        };
        one
    });
    Ok(settled.collect())
}

fn of_options(args: &GenerateArgs) -> Result<Vec<Asked>, Failure> {
    if let Some(path) = &args.image {
        check_picture(path, "--image")?;
    }
    let texts = match (args.prompts.is_empty(), &args.image) {
        (true, Some(_)) => vec![String::new()],
        _ => args.prompts.clone(),
    };
    let asked = (1..).zip(texts).map(|(number, text)| Asked {
        prompt: Prompt {
            what: args.what(text),
            ..Prompt::default()
        },
        dialogue: None,
        picture: args.image.clone(),
        name: format!("prompt {number}"),
    });
    Ok(asked.collect())
}

fn of_file(path: &Path, args: &GenerateArgs) -> Result<Vec<Asked>, Failure> {
    let (text, file) = if path.as_os_str() == "-" {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|error| Failure::io("standard input cannot be read", error))?;
        (text, "standard input".to_owned())
    } else {
        let text = std::fs::read_to_string(path);
        let file = path.display().to_string();
        (text.map_err(|error| unreadable(&file, error))?, file)
    };
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let name = format!("{file}, line {number}");
            let line: Line = serde_json::from_str(line).map_err(|error| {
                Failure::usage(
                    format!("{name}: it is no prompt"),
                    error.to_string(),
                    r#"write {"prompt": "TEXT"}, or {"prompt": "TEXT", "image": "FILE"}"#,
                )
            })?;
            let picture = line.image.map(PathBuf::from);
            if let Some(path) = &picture {
                check_picture(path, &name)?;
            }
            Ok(Asked {
                prompt: Prompt {
                    what: args.what(line.prompt),
                    ..Prompt::default()
                },
                dialogue: None,
                picture,
                name,
            })
        })
        .collect()
}

/// Puts each prompt into a dialogue of its own, in which the user says it, by the chat template of `folder`.
///
/// # Errors
/// No published model (exit 2), no template that can be used (8), a prompt that it does not take (4).
pub(super) async fn in_dialogues(
    asked: &mut [Asked],
    folder: Option<&Folder>,
) -> Result<(), Failure> {
    let Some(folder) = folder else {
        return Err(Failure::usage(
            "a run has no chat template",
            "its stages are asked as they were trained",
            "leave --chat out, or name the folder of a published model",
        ));
    };
    let template = Template::of(folder).await?;
    let template = template.ok_or_else(|| Template::missing(folder))?;
    for one in asked {
        let said = Message::of_user(one.prompt.what.text());
        one.dialogue = Some(template.render(&[said])?);
    }
    Ok(())
}

impl Asked {
    /// The prompt with its picture.
    ///
    /// # Errors
    /// When the file is gone meanwhile.
    pub(super) fn whole(&self) -> Result<Prompt, Failure> {
        let read = |path: &PathBuf| {
            let bytes = std::fs::read(path);
            bytes.map_err(|error| unreadable(&path.display().to_string(), error))
        };
        let bytes = self.picture.as_ref().map(read).transpose()?;
        let what = match &self.dialogue {
            Some(text) => What::Bare(text.clone()),
            None => self.prompt.what.clone(),
        };
        Ok(Prompt {
            what,
            picture: bytes.map(|bytes| STANDARD.encode(bytes)),
            ..self.prompt.clone()
        })
    }
}

/// Whether there is such a file, not larger than pictures are.
fn check_picture(path: &Path, asked_by: &str) -> Result<(), Failure> {
    let file = path.display().to_string();
    let size = std::fs::metadata(path).map_err(|error| unreadable(&file, error))?;
    match size.len() <= MOST_PICTURE {
        true => Ok(()),
        false => Err(Failure::data(
            format!("{asked_by}: {file} is too large for a picture"),
            format!("it has {} bytes, more than {MOST_PICTURE}", size.len()),
            "give a smaller one",
        )),
    }
}

fn unreadable(file: &str, error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(
            format!("there is no file {file}"),
            "its name was given on the command line or in the file of prompts",
            "names are relative to the current directory",
        ),
        _ => Failure::io(format!("{file} cannot be read"), error),
    }
}
