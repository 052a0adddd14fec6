//! Makes tars and pictures, and compares folders.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use mks2_dataset::error::Result;
use mks2_dataset::import::{Options, Summary, import};
use mks2_dataset::reader::Corpus;
use mks2_dataset::row::Row;
use serde_json::Value;

/// A PNG of 8 x 8 pixels whose content depends on the seed.
pub(crate) fn png(seed: usize) -> Vec<u8> {
    let image = image::RgbImage::from_fn(8, 8, |x, y| {
        image::Rgb([(seed % 251) as u8, (x * 30) as u8, (y * 30) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A tar header of type `kind`, with a right checksum.
pub(crate) fn header(name: &[u8], size: usize, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// One file inside a tar: header, content, padding.
pub(crate) fn entry(name: &[u8], content: &[u8]) -> Vec<u8> {
    let padding = (512 - content.len() % 512) % 512;
    [
        &header(name, content.len(), b'0'),
        content,
        &vec![0; padding],
    ]
    .concat()
}

/// A whole tar.
pub(crate) fn tar(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

/// The three entries of a good sample.
pub(crate) fn sample(key: &str, seed: usize) -> Vec<u8> {
    [
        entry(format!("{key}.png").as_bytes(), &png(seed)),
        entry(
            format!("{key}.txt").as_bytes(),
            format!("caption of {key}\n").as_bytes(),
        ),
        entry(
            format!("{key}.json").as_bytes(),
            format!(r#"{{"name": "thing {seed}", "n": {seed}}}"#).as_bytes(),
        ),
    ]
    .concat()
}

/// A tar of good samples with keys `s-FROM` and so on.
pub(crate) fn good_tar(from: usize, count: usize) -> Vec<u8> {
    let samples: Vec<_> = (from..from + count)
        .map(|at| sample(&format!("s-{at:04}"), at))
        .collect();
    tar(&samples)
}

/// A folder for one test.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and gives its path as text.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Settings with small groups (4 rows) and shards (2 groups).
    pub(crate) fn options(&self, sources: &[impl AsRef<str>], out: &str) -> Options {
        let out = self.path(out).to_str().unwrap().to_owned();
        let mut options = Options::new(
            sources
                .iter()
                .map(|name| name.as_ref().to_owned())
                .collect(),
            out,
        );
        options.row_group_rows = 4;
        options.row_groups_per_shard = 2;
        options
    }

    pub(crate) async fn import(&self, sources: &[impl AsRef<str>], out: &str) -> Result<Summary> {
        import(&self.options(sources, out), &|_| {}).await
    }

    pub(crate) async fn rows(&self, out: &str) -> Vec<Row> {
        rows(self.path(out).to_str().unwrap()).await
    }

    /// The lines of `quarantine.jsonl`.
    pub(crate) fn quarantine(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("quarantine.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// All rows of a corpus.
pub(crate) async fn rows(url: &str) -> Vec<Row> {
    let corpus = Corpus::open(url).await.unwrap();
    let mut rows = Vec::new();
    for group in 0..corpus.groups() {
        let whole = corpus.read_group(group).await.unwrap();
        let keys: Vec<String> = whole.iter().map(|row| row.key.clone()).collect();
        assert_eq!(corpus.read_keys(group).await.unwrap(), keys);
        rows.extend(whole);
    }
    rows
}

/// Every file below a folder with its bytes.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for found in std::fs::read_dir(current).unwrap() {
            let path = found.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(
                    path.strip_prefix(folder).unwrap().into(),
                    std::fs::read(&path).unwrap(),
                );
            }
        }
    }
    files
}

/// A sample corpus of the repository.
pub(crate) fn example(name: &str) -> String {
    format!(
        "{}/../examples/emoji/corpus/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}
