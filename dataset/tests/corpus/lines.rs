//! JSON lines: pictures beside the file, text-only rows, paths that try to leave.

use mks2_dataset::row::render;

use crate::support::{Bench, example, png};

#[tokio::test(flavor = "multi_thread")]
async fn text_only_questions_are_imported() {
    let bench = Bench::new();
    let sources = [
        example("color-questions-train.jsonl"),
        example("color-questions-test.jsonl"),
    ];
    let summary = bench.import(&sources, "out").await.unwrap();
    assert_eq!((summary.rows, summary.quarantined), (435 + 93, 0));
    let first = &bench.rows("out").await[0];
    assert_eq!(first.key, "1f6a5");
    assert_eq!(
        first.question.as_deref(),
        Some("What color is the horizontal traffic light?")
    );
    assert_eq!(first.answer.as_deref(), Some("gray"));
    assert_eq!((first.image.as_ref(), first.caption.as_ref()), (None, None));
    assert_eq!(render("{id}: {share}", first).unwrap(), "1f6a5: 0.723");
    assert_eq!(first.metadata["choices"].as_array().unwrap().len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_read_relative_to_the_file() {
    let bench = Bench::new();
    bench.file("data/pictures/one #1%.png", png(1));
    bench.file("data/two.png", png(2));
    let lines = concat!(
        "{\"key\": \"a\", \"image\": \"pictures/one #1%.png\", \"caption\": \"one\"}\n",
        "{\"key\": \"b\", \"image\": \"./two.png\", \"question\": \"q?\", \"answer\": \"a\"}\r\n",
        "\n",
        "{\"image\": null, \"caption\": \"text only\", \"extra\": {\"b\": 1, \"a\": [2]}}",
    );
    let source = bench.file("data/x.jsonl", lines);
    let summary = bench.import(&[source], "out").await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined),
        (3, 0),
        "{:?}",
        bench.quarantine("out")
    );
    let rows = bench.rows("out").await;
    assert_eq!(rows[0].image.as_deref(), Some(&*png(1)));
    assert_eq!(rows[1].image.as_deref(), Some(&*png(2)));
    assert_eq!(
        (rows[2].key.as_str(), rows[2].image.as_ref()),
        ("00000-000000004", None)
    );
    assert_eq!(rows[2].metadata["extra"]["a"][0], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_have_their_line_and_reason() {
    let bench = Bench::new();
    bench.file("secret.png", png(1));
    bench.file("data/cut.png", &png(1)[..40]);
    bench.file("data/folder/x", b"");
    #[cfg(unix)]
    std::os::unix::fs::symlink(bench.path("secret.png"), bench.path("data/link.png")).unwrap();
    let cases: [(&[u8], &str); 12] = [
        (
            br#"{"image": "../secret.png", "caption": "c"}"#,
            "path_traversal",
        ),
        (
            br#"{"image": "/etc/passwd", "caption": "c"}"#,
            "path_traversal",
        ),
        (
            br#"{"image": "a/../../secret.png", "caption": "c"}"#,
            "path_traversal",
        ),
        (
            br#"{"image": "link.png", "caption": "c"}"#,
            "path_traversal",
        ),
        (
            br#"{"image": "none.png", "caption": "c"}"#,
            "picture_missing",
        ),
        (br#"{"image": "folder", "caption": "c"}"#, "picture_missing"),
        (
            br#"{"image": "cut.png", "caption": "c"}"#,
            "picture_truncated",
        ),
        (br#"{"image": 7, "caption": "c"}"#, "field_not_text"),
        (br#"{"caption": "#, "json_broken"),
        (b"{\"caption\": \"\xff\"}", "not_utf8"),
        (br#"{"id": "n"}"#, "caption_missing"),
        (br#"{"id": "good", "caption": "again"}"#, "duplicate_key"),
    ];
    let mut text = br#"{"id": "good", "caption": "fine"}"#.to_vec();
    for (line, _) in &cases {
        text.push(b'\n');
        text.extend_from_slice(line);
    }
    let source = bench.file("data/x.jsonl", &text);
    let summary = bench.import(&[source], "out").await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined as usize),
        (1, cases.len())
    );
    for (at, (line, (_, reason))) in bench.quarantine("out").iter().zip(&cases).enumerate() {
        assert_eq!(line["reason"], *reason, "{line}");
        assert_eq!(line["line"].as_u64(), Some(at as u64 + 2), "{line}");
    }
}
