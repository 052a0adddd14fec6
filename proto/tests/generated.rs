//! The checked-in code is what the proto file generates. `MKS2_REGENERATE=1 cargo test -p
//! mks2-proto --test generated` writes it again.

use std::{fs, path::Path};

use protox::prost::Message;

const PROTO: &str = "mks2/v1/coordinator.proto";

#[test]
fn the_generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let set = protox::compile([PROTO], [root.join("proto")]).expect("the proto file compiles");
    let scratch = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .bytes(".mks2.v1.Directive")
        .out_dir(scratch.path())
        .compile_fds(set.clone())
        .expect("the descriptors generate code");
    let code = fs::read(scratch.path().join("mks2.v1.rs")).expect("generated code");
    compare_or_write(&root.join("src/gen/mks2.v1.rs"), &code);
    compare_or_write(&root.join("src/gen/mks2.v1.bin"), &set.encode_to_vec());
}

fn compare_or_write(path: &Path, fresh: &[u8]) {
    if std::env::var_os("MKS2_REGENERATE").is_some() {
        fs::write(path, fresh).expect("the source tree is writable");
        return;
    }
    let checked_in = fs::read(path).expect("a checked-in file");
    assert!(
        checked_in == fresh,
        "{} is not what {PROTO} generates: run with MKS2_REGENERATE=1",
        path.display()
    );
}
