//! `include/mrm.h` is what cbindgen makes of the sources, and names every error number.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mrm_client::LocalCode;
use mrm_proto::dtype::DType;
use mrm_proto::error::ErrorCode;
use std::path::Path;

fn generated() -> String {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml"))
        .expect("cbindgen.toml is valid");
    let mut bytes = Vec::new();
    cbindgen::generate_with_config(crate_dir, config)
        .expect("the sources parse")
        .write(&mut bytes);
    String::from_utf8(bytes).expect("headers are UTF-8")
}

#[test]
fn the_committed_header_is_in_step_with_the_sources() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mrm.h");
    let generated = generated();
    if std::env::var_os("MRM_UPDATE").is_some() {
        std::fs::write(&path, &generated).expect("the header can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = committed
        .lines()
        .zip(generated.lines())
        .position(|(old, new)| old != new);
    assert!(
        committed == generated,
        "{} is out of step from line {}; run MRM_UPDATE=1 cargo test -p mrm-ffi --test header",
        path.display(),
        differing.map_or(0, |line| line + 1),
    );
}

#[test]
fn every_number_of_the_rust_side_is_in_the_header() {
    let header = generated();
    let has = |name: &str, number: u32| {
        let line = format!("MRM_ERROR_E_{} = {number},", name.to_uppercase());
        assert!(header.contains(&line), "the header lacks `{line}`");
    };
    for code in ErrorCode::ALL {
        has(code.name(), code.number().into());
    }
    for code in LocalCode::ALL {
        has(code.name(), code.number().into());
    }
    for dtype in DType::ALL {
        let name = dtype.name();
        let found = header.lines().any(|line| {
            let plain = line.trim().replace('_', "");
            let wanted = format!("MRM_DTYPE_E_{name} = {},", dtype.code()).replace('_', "");
            plain == wanted
        });
        assert!(found, "the header lacks the element type {name}");
    }
}
