use std::path::Path as FilePath;

use mks2_proto::failure::{ExitCode, Failure};

use super::*;

/// Writes files and reads the first one as a task.
async fn task(files: &[(&str, &str)]) -> Result<Task, Failure> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let first = folder.path().join(files[0].0);
    Task::read(first.to_str().unwrap())
        .await
        .map_err(Failure::from)
}

/// It is refused with this code, in words that hold these.
async fn refused(files: &[(&str, &str)], code: ExitCode, words: &[&str]) {
    let failure = task(files).await.unwrap_err();
    assert_eq!(failure.exit, code, "{failure}");
    for word in words {
        assert!(failure.to_string().contains(word), "{word}: {failure}");
    }
}

const CHOICES: &str = "kind = \"multiple-choice\"\ndata = \"q.jsonl\"\n";
const CAPTIONS: &str = "kind = \"captions\"\ndata = \"c.json\"\nimages = \"pictures\"\n";
const VQA: &str = "kind = \"vqa\"\ndata = \"q.json\"\nannotations = \"a.json\"\nimages = \"p\"\n\
    file = \"COCO_{image_id:04}.jpg\"\n";

#[tokio::test]
async fn questions_with_choices_are_read_from_lines_and_lists() {
    let lines = "{\"id\": \"x\", \"question\": \"Q?\", \"choices\": [\"a\", \"b\"], \"answer\": \"b\"}\n\n\
        {\"question\": \"R?\", \"choices\": [\"c\"], \"answer\": 0}\n";
    let list = format!("[{}]", lines.trim().replace("\n\n", ","));
    for data in [lines, &list] {
        let task = task(&[("colors.toml", CHOICES), ("q.jsonl", data)])
            .await
            .unwrap();
        assert_eq!((task.name.as_str(), task.count), ("colors", 2));
        assert_eq!(task.settings.version(), "1");
        let Items::Choices(items) = &task.items else {
            panic!("{task:?}")
        };
        let rights: Vec<usize> = items.iter().map(|item| item.right).collect();
        assert_eq!(rights, [1, 0]);
        let keys: Vec<&str> = items.iter().map(|item| item.row.key.as_str()).collect();
        assert_eq!(keys, ["x", "2"]);
        assert_eq!(task.clone().limited(Some(1)).items.len(), 1);
        assert_eq!(task.limited(None).items.len(), 2);
    }
}

#[tokio::test]
async fn captions_are_read_from_both_forms() {
    let coco = r#"{"images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a/a.png"}],
        "annotations": [{"image_id": 3, "caption": "one"}, {"image_id": 7, "caption": "two"},
                        {"image_id": 3, "caption": "three"}]}"#;
    let split = r#"{"images": [
        {"filename": "a.png", "filepath": "a", "split": "test", "sentences": [{"raw": "one"}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": "two"}]}]}"#;
    let pictures = [("pictures/b.png", ""), ("pictures/a/a.png", "")];
    let of = async |toml: &str, data: &str| {
        let files = [("t.toml", toml), ("c.json", data), pictures[0], pictures[1]];
        match task(&files).await.unwrap().items {
            Items::Pictures(items) => items,
            other => panic!("{other:?}"),
        }
    };
    let found = of(CAPTIONS, coco).await;
    assert_eq!((found[0].key.as_str(), found[0].captions.len()), ("7", 1));
    assert_eq!(found[1].captions, ["one", "three"]);
    let found = of(&format!("{CAPTIONS}split = \"test\"\n"), split).await;
    assert_eq!((found.len(), found[0].file.as_str()), (1, "a/a.png"));
    let retrieval = CAPTIONS.replace("captions\"", "retrieval\"");
    assert_eq!(of(&retrieval, split).await.len(), 2);
}

const QUESTIONS: &str = r#"{"questions": [{"question_id": 1, "image_id": 42, "question": "Q?"}]}"#;

#[tokio::test]
async fn questions_about_pictures_find_their_answers_and_pictures() {
    let answers = r#"{"annotations": [{"question_id": 1, "answers": [{"answer": "yes"}, {"answer": "no"}]}]}"#;
    let files = [("t.toml", VQA), ("q.json", QUESTIONS), ("a.json", answers)];
    let task = task(&[&files[..], &[("p/COCO_0042.jpg", "bytes")]].concat()).await;
    let task = task.unwrap();
    let Items::Questions(items) = &task.items else {
        panic!("{task:?}")
    };
    assert_eq!(items[0].answers, ["yes", "no"]);
    assert_eq!(items[0].file, "COCO_0042.jpg");
}

#[tokio::test]
async fn what_is_wrong_with_a_task_file_is_named() {
    let settings = ExitCode::Settings;
    let nowhere = Task::read("nowhere/at-all.toml").await.unwrap_err();
    assert_eq!(Failure::from(nowhere).exit, settings);
    let cases = [
        (
            "kind = \"multiple-choice\"\ndata = \"q\"\npromt = \"x\"\n",
            "promt",
        ),
        ("kind = \"summary\"\ndata = \"q\"\n", "summary"),
        ("data = \"q\"\n", "kind"),
        ("kind = \"captions\"\ndata = \"c\"\n", "images"),
        (
            "kind = \"captions\"\ndata = \"c\"\nimages = \".\"\nmax_tokens = 0\n",
            "max_tokens",
        ),
        (
            "kind = \"multiple-choice\"\ndata = \"q\"\nprompt = \"{question\"\n",
            "never closed",
        ),
        (
            "kind = \"multiple-choice\"\ndata = \"q\"\nname = \"a/b\"\n",
            "name",
        ),
        (
            "kind = \"captions\"\ndata = \"c\"\nimages = \".\"\nprompt = 3\n",
            "in `prompt`",
        ),
        ("kind = ", "task file"),
    ];
    for (toml, word) in cases {
        refused(&[("t.toml", toml)], settings, &["t.toml", word]).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_data_is_named_with_its_place() {
    let data = ExitCode::Data;
    refused(
        &[("t.toml", CHOICES)],
        data,
        &["q.jsonl", "t.toml names it"],
    )
    .await;
    let good = r#"{"question": "Q?", "choices": ["a"], "answer": "a"}"#;
    let lines = [
        ("", "has no item"),
        (
            "{\"question\": \"Q?\", \"choices\": [\"a\"]}",
            "line 2: it cannot be measured on",
        ),
        (
            "{\"question\": \"Q?\", \"choices\": [\"a\"]}",
            "no answer in \"answer\"",
        ),
        (
            "{\"question\": \"Q?\", \"choices\": [\"a\"], \"answer\": \"b\"}",
            "not among its choices",
        ),
        (
            "{\"question\": \"Q?\", \"choices\": [\"a\"], \"answer\": 1}",
            "not among its choices",
        ),
        (
            "{\"question\": \"Q?\", \"answer\": \"b\"}",
            "no list \"choices\"",
        ),
        (
            "{\"question\": \"Q?\", \"choices\": [1], \"answer\": \"b\"}",
            "is no text",
        ),
        (
            "{\"question\": \"Q?\", \"choices\": [\"\"], \"answer\": \"\"}",
            "is empty",
        ),
        (
            "{\"choices\": [\"a\"], \"answer\": \"a\"}",
            "no field \"question\"",
        ),
        ("{\"question\"", "line 2"),
        ("[3]", "line 2"),
    ];
    for (line, word) in lines {
        let text = match line {
            "" => String::new(),
            _ => format!("{good}\n{line}\n"),
        };
        refused(
            &[("t.toml", CHOICES), ("q.jsonl", &text)],
            data,
            &["q.jsonl", word],
        )
        .await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_captions_and_annotations_is_named() {
    let images = r#""images": [{"id": 1, "file_name": "b.png"}]"#;
    let cases = [
        ("{}".to_owned(), "no list \"images\""),
        (format!("{{{images}, \"annotations\": []}}"), "image 1 (1)"),
        (
            format!("{{{images}, \"annotations\": [{{\"image_id\": 2, \"caption\": \"x\"}}]}}"),
            "annotations, row 1",
        ),
        (
            format!("{{{images}, \"annotations\": [{{\"image_id\": 1}}]}}"),
            "missing field `caption`",
        ),
        (
            r#"{"images": [{"filename": "b.png", "sentences": []}]}"#.into(),
            "has no caption",
        ),
        (r#"{"images": []}"#.into(), "has no item"),
        (
            r#"{"images": [{"filename": "gone.png", "sentences": [{"raw": "x"}]}]}"#.into(),
            "item 1: its picture is not there",
        ),
        (
            r#"{"images": [{"filename": "../c.json", "sentences": [{"raw": "x"}]}]}"#.into(),
            "item 1: it cannot be measured on",
        ),
        ("[".into(), "no JSON"),
    ];
    for (text, word) in &cases {
        let files = [
            ("t.toml", CAPTIONS),
            ("c.json", text),
            ("pictures/b.png", ""),
        ];
        let failure = task(&files).await.unwrap_err();
        assert!(failure.to_string().contains(word), "{word}: {failure}");
    }
    let unanswered = [
        ("t.toml", VQA),
        ("q.json", QUESTIONS),
        ("a.json", r#"{"annotations": []}"#),
    ];
    refused(
        &unanswered,
        ExitCode::Data,
        &["q.json, question 1 (1)", "nobody has answered"],
    )
    .await;
    let nameless = VQA.replace("{image_id:04}", "{image}");
    let answered = r#"{"annotations": [{"question_id": 1, "answers": [{"answer": "yes"}]}]}"#;
    let files = [
        ("t.toml", nameless.as_str()),
        ("q.json", QUESTIONS),
        ("a.json", answered),
    ];
    refused(&files, ExitCode::Data, &["names no picture"]).await;
}

#[test]
fn names_are_relative_to_the_task_file() {
    assert!(FilePath::new(&beside("/a/t.toml", "../b")).is_absolute());
    let cases = [
        (("/a/t.toml", "q.jsonl"), "/a/q.jsonl"),
        (("t.toml", "q.jsonl"), "q.jsonl"),
        (("s3://b/a/t.toml", "q.jsonl"), "s3://b/a/q.jsonl"),
        (("a/t.toml", "/q.jsonl"), "/q.jsonl"),
        (("a/t.toml", "gs://b/q.jsonl"), "gs://b/q.jsonl"),
    ];
    for ((file, name), wanted) in cases {
        assert_eq!(beside(file, name), wanted);
    }
}
