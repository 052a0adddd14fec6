//! Pictures with several captions each: COCO's files, and those in which Flickr30k and the usual splits of
//! COCO are shared.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Result;
use super::rows::File;

/// A picture with its captions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictured {
    /// What the data call it.
    pub key: String,
    /// Its file, relative to the folder of pictures.
    pub file: String,
    /// At least one.
    pub captions: Vec<String>,
}

/// A number or a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(i64),
    Text(String),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// COCO's `images`.
#[derive(Deserialize)]
struct Image {
    id: Id,
    file_name: String,
}

/// COCO's `annotations`.
#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    caption: String,
}

/// The other form's `images`.
#[derive(Deserialize)]
struct Described {
    filename: String,
    #[serde(default)]
    filepath: Option<String>,
    #[serde(default)]
    split: Option<String>,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// The pictures of a file, in its order.
pub(super) fn read(split: Option<&str>, name: &str, bytes: &[u8]) -> Result<Vec<Pictured>> {
    let file = File { name };
    let mut whole = file.json(bytes)?;
    let pictures = match whole.get("annotations") {
        Some(_) if split.is_some() => {
            return Err(file.refuse("it has no splits, and the task wants one"));
        }
        Some(_) => coco(file, &mut whole)?,
        None => described(file, &mut whole, split)?,
    };
    match pictures.iter().position(|one| one.captions.is_empty()) {
        None => Ok(pictures),
        Some(at) => Err(file.refuse_row(
            format!("image {} ({})", at + 1, pictures[at].key),
            "it has no caption",
        )),
    }
}

fn coco(file: File<'_>, whole: &mut Value) -> Result<Vec<Pictured>> {
    let images: Vec<Image> = file.list(whole, "images")?;
    let mut places = BTreeMap::new();
    let mut pictures = Vec::with_capacity(images.len());
    for image in images {
        let key = image.id.to_string();
        if places.insert(image.id, pictures.len()).is_some() {
            return Err(file.refuse(format!("two images have the id {key}")));
        }
        pictures.push(Pictured {
            key,
            file: image.file_name,
            captions: Vec::new(),
        });
    }
    let annotations: Vec<Annotation> = file.list(whole, "annotations")?;
    for (number, annotation) in (1..).zip(annotations) {
        let Some(place) = places.get(&annotation.image_id) else {
            let why = format!("there is no image with the id {}", annotation.image_id);
            return Err(file.refuse_row(format!("annotations, row {number}"), why));
        };
        pictures[*place].captions.push(annotation.caption);
    }
    Ok(pictures)
}

fn described(file: File<'_>, whole: &mut Value, split: Option<&str>) -> Result<Vec<Pictured>> {
    let images: Vec<Described> = file.list(whole, "images")?;
    let wanted = images
        .into_iter()
        .filter(|image| split.is_none() || image.split.as_deref() == split);
    let pictured = wanted.map(|image| Pictured {
        file: match image.filepath {
            Some(folder) => format!("{folder}/{}", image.filename),
            None => image.filename.clone(),
        },
        key: image.filename,
        captions: image.sentences.into_iter().map(|own| own.raw).collect(),
    });
    Ok(pictured.collect())
}
