//! A file of weights, whatever is in it, is refused or read to its last tensor.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use mks2_dataset::pretrained::Folder;
use mks2_dataset::pretrained::tensors::Tensors;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
        Builder::new_current_thread().build().expect("a runtime")
    });
}

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("mks2-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("written");
    let folder = Folder::open(folder.to_str().expect("UTF-8")).expect("a folder");
    RUNTIME.with(|runtime| {
        let Ok(tensors) = runtime.block_on(Tensors::open(&folder)) else {
            return;
        };
        for (name, place) in tensors.iter() {
            let size = place.range.end - place.range.start;
            assert!(size <= bytes.len() as u64, "'{name}' has {size} bytes");
            let mut read = vec![0; size as usize];
            runtime.block_on(tensors.read(place, &mut read)).expect("what was found can be read");
            let from = place.range.start as usize;
            assert_eq!(read, bytes[from..from + read.len()]);
        }
    });
});
