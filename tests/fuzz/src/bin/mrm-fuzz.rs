//! The coverage-guided driver: libFuzzer around one target, which `MRM_FUZZ_TARGET` names.
//!
//! `scripts/fuzz` builds it with the instrumentation that it needs, and runs it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mrm_fuzz::{TARGETS, Target};
use std::sync::OnceLock;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let name = std::env::var("MRM_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = Target::find(&name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "MRM_FUZZ_TARGET is `{name}`; it must be one of {}",
            names.join(", ")
        );
        std::process::exit(2);
    };
    target
}

fuzz_target!(|input: &[u8]| {
    (TARGET.get_or_init(chosen).run)(input);
});
