//! `install.sh`: what it installs is found by pkg-config and by the loader.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;

#[test]
fn what_is_installed_is_found_and_linked() {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let this = std::env::current_exe().expect("tests know their path");
    let built = this.parent().expect("a file has a directory");
    let root = tempfile::tempdir().expect("a directory");
    let prefix = root.path().join("usr");
    let status = Command::new("sh")
        .arg(ffi.join("install.sh"))
        .env("BUILT", built)
        .env("PREFIX", "/usr")
        .env("DESTDIR", root.path())
        .env_remove("LIBDIR")
        .status()
        .expect("sh runs");
    assert!(status.success());

    let lib = prefix.join("lib");
    let version = env!("CARGO_PKG_VERSION");
    let link = |name: &str| std::fs::read_link(lib.join(name)).expect("a link");
    assert_eq!(
        link("libmrm.so.0"),
        Path::new(&format!("libmrm.so.{version}"))
    );
    assert_eq!(link("libmrm.so"), Path::new("libmrm.so.0"));
    for file in ["lib/libmrm.a", "include/mrm.h", "include/mrm.hpp"] {
        assert!(prefix.join(file).is_file(), "{file} is missing");
    }
    let description = std::fs::read_to_string(lib.join("pkgconfig/mrm.pc")).expect("is there");
    assert!(
        description.contains("prefix=/usr\n") && !description.contains('@'),
        "{description}"
    );
    assert!(description.contains(&format!("Version: {version}\n")));

    let flags = Command::new("pkg-config")
        .args(["--define-prefix", "--cflags", "--libs", "mrm"])
        .env("PKG_CONFIG_PATH", lib.join("pkgconfig"))
        .output();
    let Ok(flags) = flags else {
        eprintln!("SKIPPED: pkg-config is missing; install it to link against what is installed");
        return;
    };
    let flags = String::from_utf8(flags.stdout).expect("UTF-8");
    let program = root.path().join("hold");
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .arg(ffi.join("examples/c/hold.c"))
        .args(flags.split_whitespace())
        .arg("-o")
        .arg(&program)
        .status();
    let Ok(compiled) = compiled else {
        eprintln!("SKIPPED: cc is missing; install a C compiler to link against what is installed");
        return;
    };
    assert!(compiled.success(), "{flags}");
    let output = Command::new(&program)
        .env("LD_LIBRARY_PATH", &lib)
        .output()
        .expect("runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(2),
        "the loader finds the soname: {complaint}"
    );
}
