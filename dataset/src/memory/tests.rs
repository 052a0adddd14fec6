//! What is whole is read, what is not is refused, and nothing is replaced.

use std::path::PathBuf;

use mks2_proto::job::{MemoryForm, StageKind};
use tempfile::TempDir;

use super::card::{Base, Shape, VERSION, name_in_job, place_of};
use super::write::{Writer, Written, copy};
use super::{Artefact, Card, Group, MemoryError, Part, Tensor, list};
use crate::store::Created;

const SHAPE: Shape = Shape {
    form: MemoryForm::Plain,
    width: 3,
    hidden_size: 2,
    layers: 2,
};

fn card(name: &str, parts: Vec<Part>) -> Card {
    Card {
        version: VERSION,
        name: name.to_owned(),
        license: Some("CC0-1.0".to_owned()),
        shape: SHAPE,
        base: Base {
            digest: "ba5e".to_owned(),
            kind: StageKind::Bootstrap,
        },
        corpora: [("emoji".to_owned(), "d1".to_owned())].into(),
        rows: 640,
        steps: 10,
        seed: 1,
        losses: [("loss".to_owned(), 1.25)].into(),
        made_with: "mks2".to_owned(),
        parts,
    }
}

fn tensor(name: &str, shape: &[usize], first: f32) -> Tensor {
    let numbers = 0..shape.iter().product::<usize>();
    let bytes = numbers.flat_map(|at| (first + at as f32).to_le_bytes());
    Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: bytes.collect::<Vec<u8>>().into(),
    }
}

/// A small memory with its bridge; its first number tells it from others.
async fn written(to: &str, name: &str, first: f32) -> super::Result<Written> {
    // Every tensor is a part of its own.
    let mut writer = Writer::open(to).await?.with_part_bytes(8);
    writer
        .add(Group::Bridge, tensor("bridge.weight", &[2, 2], 0.0))
        .await?;
    for layer in 0..2 {
        for (matrix, shape) in [("down_proj", [2, 3]), ("up_proj", [3, 2])] {
            let name = format!("layers.{layer}.{matrix}.weight");
            writer
                .add(Group::Memory, tensor(&name, &shape, first))
                .await?;
        }
    }
    writer.finish(|parts| card(name, parts)).await
}

/// A folder with a memory in `a`.
async fn folder() -> (TempDir, String, Artefact) {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().join("a").display().to_string();
    let artefact = written(&at, "a", 1.0).await.expect("written").artefact;
    (folder, at, artefact)
}

fn path_of(at: &str, part: &Part) -> PathBuf {
    PathBuf::from(at).join(&part.path)
}

#[tokio::test]
async fn a_memory_has_one_id_wherever_and_however_often_it_is_written() {
    let (folder, at, artefact) = folder().await;
    let again = written(&at, "a", 1.0).await.expect("the same");
    assert_eq!(
        (again.created, &again.artefact.id),
        (Created::Exists, &artefact.id)
    );
    let copied = folder.path().join("b").display().to_string();
    let copied = copy(&artefact, &copied).await.expect("copied");
    assert_eq!(
        (copied.created, &copied.artefact.id),
        (Created::New, &artefact.id)
    );
    copied.artefact.verify().await.expect("whole");
    let groups = copied.artefact.card.parts.iter().map(|part| part.group);
    let memory = [Group::Memory; 4];
    assert_eq!(
        groups.collect::<Vec<_>>(),
        [&memory[..], &[Group::Bridge]].concat()
    );
    let found = list(folder.path().to_str().expect("UTF-8"))
        .await
        .expect("listed");
    let ids = found
        .iter()
        .map(|(_, one)| one.as_ref().expect("whole").id.as_str());
    assert_eq!(ids.collect::<Vec<_>>(), [&artefact.id, &artefact.id]);
}

#[tokio::test]
async fn another_memory_is_never_replaced() {
    let (folder, at, artefact) = folder().await;
    let files = || {
        std::fs::read_dir(folder.path().join("a/parts"))
            .expect("read")
            .count()
    };
    let before = files();
    // Of the same name, and of another one.
    for (name, first) in [("a", 2.0), ("b", 1.0)] {
        let refused = written(&at, name, first).await.expect_err("refused");
        let is_named = matches!(&refused, MemoryError::Occupied { id, .. } if *id == artefact.id);
        assert!(is_named, "{refused:?}");
        assert_eq!(files(), before, "nothing is left behind");
    }
    Artefact::open(&at)
        .await
        .expect("there")
        .verify()
        .await
        .expect("whole");
}

#[tokio::test]
async fn damaged_parts_are_refused_and_not_copied() {
    let (folder, at, artefact) = folder().await;
    let part = &artefact.card.parts[1];
    let whole = std::fs::read(path_of(&at, part)).expect("read");
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("a byte") ^= 1;
    for (damage, words) in [
        (Some(flipped), "its digest is"),
        (Some(whole[1..].to_vec()), "bytes and should have"),
        (None, "is not there"),
    ] {
        std::fs::remove_file(path_of(&at, part)).expect("removed");
        if let Some(bytes) = damage {
            std::fs::write(path_of(&at, part), bytes).expect("written");
        }
        let to = folder.path().join("b").display().to_string();
        for refused in [
            artefact.verify().await.expect_err("damaged"),
            copy(&artefact, &to).await.map(drop).expect_err("damaged"),
        ] {
            assert!(refused.to_string().contains(words), "{words}: {refused}");
        }
        let there = Artefact::open(&to).await.expect_err("nothing");
        assert!(matches!(there, MemoryError::Missing { .. }), "{there:?}");
        std::fs::write(path_of(&at, part), &whole).expect("written");
    }
    // What an attempt has left is no hindrance.
    let to = folder.path().join("b").display().to_string();
    let copied = copy(&artefact, &to).await.expect("whole again");
    copied.artefact.verify().await.expect("whole");
}

#[tokio::test]
async fn damaged_parts_of_the_same_memory_are_put_again() {
    let (folder, at, artefact) = folder().await;
    let to = folder.path().join("b").display().to_string();
    let copied = copy(&artefact, &to).await.expect("copied");
    assert_eq!((copied.created, copied.mended), (Created::New, 0));
    let damage = |at: &str| {
        let [first, second, ..] = artefact.card.parts.as_slice() else {
            panic!("several parts");
        };
        let mut bytes = std::fs::read(path_of(at, first)).expect("read");
        *bytes.last_mut().expect("a byte") ^= 1;
        std::fs::write(path_of(at, first), bytes).expect("written");
        std::fs::remove_file(path_of(at, second)).expect("removed");
    };
    damage(&to);
    // Of another memory nothing is touched.
    written(&to, "a", 2.0).await.expect_err("refused");
    copied.artefact.verify().await.expect_err("damaged");
    let again = copy(&artefact, &to).await.expect("mended");
    assert_eq!((again.created, again.mended), (Created::Exists, 2));
    again.artefact.verify().await.expect("whole");
    // Exported again.
    damage(&at);
    let again = written(&at, "a", 1.0).await.expect("mended");
    assert_eq!((again.created, again.mended), (Created::Exists, 2));
    again.artefact.verify().await.expect("whole");
    let again = written(&at, "a", 1.0).await.expect("whole");
    assert_eq!((again.created, again.mended), (Created::Exists, 0));
    // What is damaged in both places stays so, and is told.
    damage(&at);
    damage(&to);
    copy(&artefact, &to).await.map(drop).expect_err("damaged");
}

#[test]
fn what_is_trained_together_stays_together() {
    for (name, place) in [
        (
            "memory.m.layers.1.up_proj.weight",
            Some((Group::Memory, "layers.1.up_proj.weight")),
        ),
        ("bridge.bias", Some((Group::Bridge, "bridge.bias"))),
        (
            "qformer.layernorm.bias",
            Some((Group::Bridge, "qformer.layernorm.bias")),
        ),
        ("query_tokens", Some((Group::Bridge, "query_tokens"))),
        (
            "retrieval.text_projection.weight",
            Some((Group::Retrieval, "retrieval.text_projection.weight")),
        ),
        ("memory.n.layers.1.up_proj.weight", None),
        ("memory.m.bridge.bias", None),
        ("layers.1.up_proj.weight", None),
        ("model.norm.weight", None),
    ] {
        let found = place_of("m", name);
        let found = found.as_ref().map(|(group, name)| (*group, name.as_str()));
        assert_eq!(found, place);
        if let Some((_, within)) = found {
            assert_eq!(name_in_job("m", within), name);
        }
    }
}

#[tokio::test]
async fn what_is_no_number_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display().to_string();
    let artefact = written(&at, "a", f32::INFINITY).await.expect("written");
    let refused = artefact.artefact.verify().await.expect_err("refused");
    let words = "number 0 of tensor 'layers.0.down_proj.weight' is infinite";
    assert!(refused.to_string().contains(words), "{refused}");
}

#[tokio::test]
async fn no_byte_of_a_card_can_do_harm() {
    let (_folder, _, artefact) = folder().await;
    for at in 0..artefact.bytes.len() {
        for other in [b'9', b'"', b'-', b'{', 0, 0xff] {
            let mut bytes = artefact.bytes.to_vec();
            bytes[at] = other;
            match Card::parse("memory.json", &bytes) {
                // What is believed has all of its rules.
                Ok(card) => assert!(card.to_bytes().is_ok(), "{at}: {card:?}"),
                Err(error) => assert!(error.to_string().contains("memory.json"), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn of_writers_that_meet_one_wins_and_its_memory_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display().to_string();
    let names = ["a", "b", "c", "d"];
    let race = names.iter().zip([1.0, 2.0, 3.0, 4.0]);
    let race = race.map(|(name, first)| written(&at, name, first));
    let ended = futures::future::join_all(race).await;
    let won = ended.iter().filter_map(|end| end.as_ref().ok());
    let won: Vec<_> = won.map(|written| written.artefact.id.clone()).collect();
    let there = Artefact::open(&at).await.expect("one");
    assert_eq!(won, std::slice::from_ref(&there.id));
    there.verify().await.expect("whole");
    for end in ended.into_iter().filter_map(Result::err) {
        assert!(
            matches!(&end, MemoryError::Occupied { id, .. } if *id == there.id),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn cards_that_contradict_themselves_are_refused() {
    let (_folder, at, artefact) = folder().await;
    let file = PathBuf::from(&at).join("memory.json");
    let card = String::from_utf8(artefact.bytes.to_vec()).expect("text");
    for (from, to, words) in [
        ("\"width\": 3", "\"width\": 4", "and should be"),
        (
            "\"layers\": 2",
            "\"layers\": 4294967295",
            "2 tensors in each",
        ),
        ("\"plain\"", "\"gated\"", "3 tensors in each"),
        ("parts/", "../", "and not the name of its content"),
        ("parts/", "", "and not the name of its content"),
        ("\"bytes\": ", "\"bytes\": 99999", "cannot have"),
        ("layers.0.down", "layers.1.down", "listed twice"),
        ("      3\n", "      4611686018427387905\n", "cannot have"),
        (
            "\"name\": \"a\"",
            "\"name\": \"\\u001b[2J\"",
            "control characters",
        ),
        ("\"rows\"", "\"lines\"", "unknown field"),
        ("\"version\": 1", "\"version\": 2", "format version 2"),
        ("}", "", "line"),
    ] {
        assert!(card.contains(from), "{from} is not in {card}");
        std::fs::write(&file, card.replacen(from, to, 1)).expect("written");
        let refused = Artefact::open(&at).await.expect_err(words);
        assert!(refused.to_string().contains(words), "{words}: {refused}");
    }
    std::fs::write(&file, &card[..card.len() / 2]).expect("written");
    assert!(matches!(
        Artefact::open(&at).await,
        Err(MemoryError::Card { .. })
    ));
    let listed = list(&at).await.expect("listed");
    assert!(listed[0].1.is_err(), "told in its place");
}
