//! `retrieval`: which picture a text finds, and which text a picture finds.

use mks2_dataset::row::{Row, render};
use mks2_dataset::task::{Pictured, Retrieval};
use mks2_proto::evaluate::Metric;
use mks2_proto::failure::Failure;
use serde_json::json;
use tch::Tensor;

use super::{Found, Measurement, metric};
use crate::evaluate::blocks::Blocks;
use crate::evaluate::metrics::bootstrap::spread;
use crate::evaluate::recall::ranks;
use crate::objective::{Share, to_floats};
use crate::team::Setback;

/// Texts that are read together.
const TEXTS_AT_ONCE: usize = 32;

pub(super) fn measure(
    measurement: &Measurement<'_>,
    settings: &Retrieval,
    items: &[Pictured],
    blocks: &mut dyn Blocks,
) -> Result<Found, Setback> {
    let speaker = measurement.speaker;
    speaker.head().map_err(|mut failure| {
        failure.what = format!("task '{}': {}", measurement.task.name, failure.what);
        failure
    })?;
    measurement.must_see()?;
    let shares = blocks.shares(items.len(), &mut |block| {
        let first = block.start;
        features(measurement, settings, &items[block], first)
    })?;
    // The texts of each picture, and the picture of each text.
    let mut texts_of: Vec<Vec<usize>> = Vec::with_capacity(items.len());
    let mut picture_of: Vec<Vec<usize>> = Vec::new();
    for (picture, item) in items.iter().enumerate() {
        let first = picture_of.len();
        picture_of.extend(item.captions.iter().map(|_| vec![picture]));
        texts_of.push((first..picture_of.len()).collect());
    }
    let [pictures_ms, texts_ns] = gathered(&shares, items.len());
    let of_texts = ranks(&texts_ns, &pictures_ms, &picture_of)?;
    let of_pictures = ranks(&pictures_ms, &texts_ns, &texts_of)?;
    let of_own = texts_of
        .iter()
        .map(|texts| texts.iter().map(|text| of_texts[*text]).collect());
    let mut metrics = recalls("text_to_image", &of_own.collect::<Vec<_>>());
    let each = of_pictures.iter().map(|rank| vec![*rank]);
    metrics.extend(recalls("image_to_text", &each.collect::<Vec<_>>()));
    let samples = items.iter().enumerate().map(|(number, item)| {
        let own = texts_of[number].iter().map(|text| of_texts[*text]);
        json!({
            "doc_id": number,
            "doc": {"id": item.key, "file": item.file},
            "target": item.captions,
            "filter": "none",
            "metrics": ["image_to_text_rank", "text_to_image_ranks"],
            "image_to_text_rank": of_pictures[number],
            "text_to_image_ranks": own.collect::<Vec<_>>(),
        })
    });
    Ok(Found {
        samples: samples.collect(),
        metrics,
    })
}

/// Shares of ranks among the first one, five and ten. Errors are those of other pictures with all that belongs to
/// them, since the ranks of one picture's texts depend on each other.
fn recalls(direction: &str, ranks_of: &[Vec<usize>]) -> Vec<Metric> {
    const MOST: [usize; 3] = [1, 5, 10];
    let shares = |pictures: &[usize]| {
        let all: usize = pictures.iter().map(|at| ranks_of[*at].len()).sum();
        MOST.map(|most| {
            let ranks = pictures.iter().flat_map(|at| &ranks_of[*at]);
            ranks.filter(|rank| **rank <= most).count() as f64 / all.max(1) as f64
        })
    };
    let every: Vec<usize> = (0..ranks_of.len()).collect();
    let found = shares(&every).into_iter().zip(spread(every.len(), shares));
    let named = MOST.iter().zip(found).map(|(most, (value, spread))| {
        let name = format!("{direction}_r{most}");
        metric(&name, value, spread.deviation, spread)
    });
    named.collect()
}

/// The features of the pictures, and behind them those of their texts; the count of pictures tells them
/// apart.
fn features(
    measurement: &Measurement<'_>,
    settings: &Retrieval,
    items: &[Pictured],
    first: usize,
) -> Result<Share, Failure> {
    let speaker = measurement.speaker;
    let (mut pictures, mut texts) = (Vec::new(), Vec::new());
    let files = (first..).zip(items.iter().map(|item| item.file.as_str()));
    let files = measurement.pictures(files)?;
    for (number, (item, file)) in (first..).zip(items.iter().zip(files)) {
        let square = speaker.picture(&file);
        pictures.push(square.map_err(|failure| measurement.named(number, failure))?);
        for caption in &item.captions {
            let row = Row {
                caption: Some(caption.clone()),
                key: item.key.clone(),
                ..Row::default()
            };
            texts.push(render(&settings.text, &row)?);
        }
    }
    let mut features = Vec::new();
    for some in pictures.chunks(measurement.batch.max(1)) {
        let some: Vec<&[u8]> = some.iter().map(Vec::as_slice).collect();
        let seen = speaker.eyes()?.see(&some, speaker.device)?;
        features.extend(to_floats(&speaker.head()?.images(&seen.global_be))?);
    }
    for some in texts.chunks(TEXTS_AT_ONCE) {
        features.extend(to_floats(&speaker.texts(some)?)?);
    }
    Ok(Share {
        counts: vec![pictures.len() as f64, texts.len() as f64],
        features,
    })
}

/// The features of all `pictures` pictures, and of all texts.
fn gathered(shares: &[Share], pictures: usize) -> [Tensor; 2] {
    let (mut of_pictures, mut of_texts) = (Vec::new(), Vec::new());
    let mut width = 1;
    for share in shares {
        let count = |at: usize| share.counts.get(at).copied().unwrap_or(0.0) as usize;
        width = share.features.len() / (count(0) + count(1)).max(1);
        let (first, rest) = share.features.split_at(count(0) * width);
        of_pictures.extend_from_slice(first);
        of_texts.extend_from_slice(rest);
    }
    debug_assert_eq!(of_pictures.len(), pictures * width);
    [of_pictures, of_texts].map(|values| Tensor::from_slice(&values).view([-1, width as i64]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_picture_are_no_further_evidence() {
        let once: Vec<Vec<usize>> = (0..40)
            .map(|at| vec![if at % 4 == 0 { 1 } else { 7 }])
            .collect();
        let five_times: Vec<Vec<usize>> = once.iter().map(|own| own.repeat(5)).collect();
        let found = recalls("text_to_image", &once);
        let names: Vec<&str> = found.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(
            names,
            ["text_to_image_r1", "text_to_image_r5", "text_to_image_r10"]
        );
        let values: Vec<f64> = found.iter().map(|metric| metric.value).collect();
        assert_eq!(values, [0.25, 0.25, 1.0]);
        assert!(found[0].interval[0] < 0.2 && found[0].interval[1] > 0.3);
        assert_eq!(recalls("text_to_image", &five_times), found);
    }
}
