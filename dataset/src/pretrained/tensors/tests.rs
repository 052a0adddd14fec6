use bytes::Bytes;
use mks2_proto::params::Init;
use object_store::ObjectStoreExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A folder in memory of its own.
fn folder(name: &str) -> Folder {
    Folder::open(&format!("memory://pretrained-{name}/model")).unwrap()
}

async fn put(folder: &Folder, name: &str, bytes: impl Into<Bytes>) {
    let path = folder.place.path(name).unwrap();
    folder
        .place
        .store
        .put(&path, bytes.into().into())
        .await
        .unwrap();
}

/// A file with this header and so many bytes of data.
fn file(header: &Value, data: usize) -> Vec<u8> {
    let json = header.to_string();
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend((0..data).map(|at| at as u8));
    bytes
}

fn two() -> Value {
    json!({
        "__metadata__": {"format": "pt"},
        "b.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
        "a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    })
}

async fn refused(name: &str, bytes: Vec<u8>) -> String {
    let folder = folder(name);
    put(&folder, SINGLE, bytes).await;
    let error = Tensors::open(&folder).await.unwrap_err();
    mks2_proto::failure::Failure::from(error).why
}

#[tokio::test]
async fn tensors_are_found_and_read_from_one_file_or_from_many() {
    let (one, many) = (folder("one"), folder("many"));
    put(&one, SINGLE, file(&two(), 20)).await;
    let halves = [
        (
            "a",
            json!({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
            8,
        ),
        (
            "b",
            json!({"b.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}),
            12,
        ),
    ];
    for (name, header, bytes) in &halves {
        put(&many, &format!("{name}.safetensors"), file(header, *bytes)).await;
    }
    let map = json!({"weight_map": {"a.weight": "a.safetensors", "b.weight": "b.safetensors"}});
    put(&many, INDEX, map.to_string()).await;
    for (folder, first) in [(one, 8_u8), (many, 0)] {
        let tensors = Tensors::open(&folder).await.unwrap();
        let names: Vec<_> = tensors.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a.weight", "b.weight"]);
        let place = tensors.place("b.weight").unwrap();
        let mut bytes = [0; 12];
        tensors.read(place, &mut bytes).await.unwrap();
        assert_eq!((place.dtype, &place.shape[..]), (Dtype::BF16, &[2, 3][..]));
        let due: Vec<u8> = (first..first + 12).collect();
        assert_eq!(bytes[..], due);
    }
}

#[tokio::test]
async fn all_that_differs_is_listed_by_name() {
    let folder = folder("differences");
    put(&folder, SINGLE, file(&two(), 20)).await;
    let tensors = Tensors::open(&folder).await.unwrap();
    let spec = |name: &str, shape: &[usize]| ParamSpec::new(name, shape, Init::Zeros);
    let right = [spec("a.weight", &[2]), spec("b.weight", &[2, 3])];
    tensors.check(&right, |_| false).unwrap();
    tensors
        .check(&right[..1], |name| name == "b.weight")
        .unwrap();
    let wrong = [spec("a.weight", &[3]), spec("c.weight", &[1])];
    let why = tensors.check(&wrong, |_| false).unwrap_err().to_string();
    for words in [
        "1 missing: c.weight",
        "1 unexpected: b.weight",
        "1 of another shape: a.weight [2] instead of [3]",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[tokio::test]
async fn types_that_no_model_reads_are_found_before_any_is_read() {
    let spec = |name: &str| ParamSpec::new(name, &[8], Init::Zeros);
    for (dtype, bytes) in [("F64", 64), ("I8", 8), ("F8_E4M3", 8), ("I32", 32)] {
        let folder = folder(dtype);
        let header = json!({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bytes]}});
        put(&folder, SINGLE, file(&header, bytes)).await;
        let tensors = Tensors::open(&folder).await.unwrap();
        let error = tensors.check(&[spec("a")], |_| false).unwrap_err();
        let failure = mks2_proto::failure::Failure::from(error);
        let words = format!("1 of a type other than F32, F16 and BF16: a {dtype}");
        assert!(failure.why.contains(&words), "{failure}");
        assert!(failure.cure.contains("F32, F16 or BF16"), "{failure}");
        // What nothing wants may be of any type.
        tensors.check(&[], |_| true).unwrap();
    }
}

#[tokio::test]
async fn damaged_files_are_refused_with_what_is_wrong() {
    let mut truncated = file(&two(), 20);
    truncated.pop();
    let mut huge = file(&two(), 20);
    huge[..8].copy_from_slice(&(100_u64 << 20).to_le_bytes());
    let mut beyond = file(&two(), 20);
    beyond[..8].copy_from_slice(&4000_u64.to_le_bytes());
    let of = |offsets: Value, shape: Value| {
        file(
            &json!({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}),
            8,
        )
    };
    let overlapping = json!({
        "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
    });
    let cases = [
        (truncated, "have 20 bytes"),
        (huge, "its header says that it has 104857600 bytes"),
        (beyond, "its header says that it has 4000 bytes"),
        (vec![1, 2, 3], "it has 3 bytes"),
        (of(json!([0, 8]), json!([3])), "tensor 'a', [3] of F32"),
        (of(json!([4, 12]), json!([2])), "where 0 was due"),
        (of(json!([8, 0]), json!([2])), "tensor 'a'"),
        (of(json!([0, 8]), json!([u64::MAX, u64::MAX])), "tensor 'a'"),
        (
            file(&overlapping, 12),
            "tensor 'b', [8] of U8, lies at bytes 4 to 12, where 8 was due",
        ),
        (file(&json!(["no", "header"]), 0), "its header is damaged"),
    ];
    for (number, (bytes, words)) in cases.into_iter().enumerate() {
        let why = refused(&format!("damaged-{number}"), bytes).await;
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[tokio::test]
async fn an_index_is_held_against_its_files() {
    let cases = [
        (
            json!({"weight_map": {"a.weight": "gone.safetensors"}}),
            "gone.safetensors",
        ),
        (
            json!({"weight_map": {"c.weight": "one.safetensors"}}),
            "no tensor 'c.weight'",
        ),
        (
            json!({"weight_map": {"a.weight": "../one.safetensors"}}),
            "'../one.safetensors'",
        ),
        (json!({"weight_map": {"a.weight": "one.bin"}}), "'one.bin'"),
        (json!({"weights": {}}), "weight_map"),
    ];
    for (number, (map, words)) in cases.into_iter().enumerate() {
        let folder = folder(&format!("index-{number}"));
        put(&folder, "one.safetensors", file(&two(), 20)).await;
        put(&folder, INDEX, map.to_string()).await;
        let why = Tensors::open(&folder).await.unwrap_err().to_string();
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[tokio::test]
async fn pickles_are_refused_with_the_command_that_converts_them() {
    let folder = folder("pickle");
    put(&folder, PICKLES[0], "anything").await;
    let error = Tensors::open(&folder).await.unwrap_err();
    let failure = mks2_proto::failure::Failure::from(error);
    assert!(failure.why.contains("is a pickle"), "{}", failure.why);
    assert!(failure.cure.contains("save_pretrained"), "{}", failure.cure);
}

proptest! {
    /// Whatever stands in a file, it is refused or read, and nothing panics.
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..120, value: u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut changed = file(&two(), 20);
        let at = at % changed.len();
        changed[at] = value;
        for (name, bytes) in [("noise", bytes), ("changed", changed)] {
            runtime.block_on(async {
                let folder = folder(name);
                put(&folder, SINGLE, bytes).await;
                if let Ok(tensors) = Tensors::open(&folder).await {
                    for (_, place) in tensors.iter() {
                        let size = place.range.end - place.range.start;
                        tensors.read(place, &mut vec![0; size as usize]).await.unwrap();
                    }
                }
            });
        }
    }
}
