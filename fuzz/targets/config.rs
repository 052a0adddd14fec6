//! A config.json, whatever is in it, is refused or described.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mks2_dataset::pretrained::config;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = config::read(bytes, "config.json") {
        assert!(error.to_string().contains("config.json"), "{error}");
    }
});
