//! Each thing that can be wrong with the driver is told apart, and which device is which.

use crate::machine::{Machine, fake};
use mrm_cuda::{CallError, DeviceUuid, ProbeFailure, probe};
use std::path::Path;

/// Identity, cause and cure.
fn look(machine: &Machine) -> [String; 3] {
    let text = machine.agent().tell("probe");
    let mut parts = text.split('|').map(str::to_owned);
    std::array::from_fn(|_| parts.next().expect("three parts"))
}

#[test]
fn a_machine_without_a_driver_says_so_and_nothing_panics() {
    // This process has no fake library on its path: it sees the machine as it is.
    match probe() {
        Ok(driver) => eprintln!("SKIPPED: this machine has a driver: {driver:?}"),
        Err(ProbeFailure::NoDriverLibrary { tried, reason }) => {
            assert_eq!(tried.first().map(String::as_str), Some("libcuda.so.1"));
            assert!(reason.contains("libcuda.so.1"), "{reason}");
        }
        Err(failure) => eprintln!("SKIPPED: this machine has some driver: {failure}"),
    }
    let again = probe().map(|driver| driver.version());
    assert_eq!(again, probe().map(|driver| driver.version()));
}

#[test]
fn each_failure_is_told_apart() {
    let cases = [
        (
            "MRM_FAKE_CUDA_INIT_ERROR",
            "34",
            "stub_library",
            "stub",
            "LD_LIBRARY_PATH",
        ),
        (
            "MRM_FAKE_CUDA_INIT_ERROR",
            "100",
            "no_device",
            "no device",
            "nvidia-smi -L",
        ),
        (
            "CUDA_VISIBLE_DEVICES",
            "",
            "no_device",
            "CUDA_VISIBLE_DEVICES is \"\"",
            "unset",
        ),
        (
            "MRM_FAKE_CUDA_DRIVER_VERSION",
            "11030",
            "driver_too_old",
            "11.3, and 11.4",
            "update",
        ),
        (
            "MRM_FAKE_CUDA_INIT_ERROR",
            "803",
            "init_failed",
            "DRIVER_MISMATCH (803)",
            "reboot",
        ),
        (
            "MRM_FAKE_CUDA_INIT_ERROR",
            "999",
            "init_failed",
            "UNKNOWN (999)",
            "/dev/nvidia",
        ),
        (
            "MRM_FAKE_CUDA_INIT_ERROR",
            "4242",
            "init_failed",
            "error 4242",
            "dmesg",
        ),
    ];
    for (name, value, id, cause, cure) in cases {
        let Some(machine) = Machine::fake() else {
            return;
        };
        let found = look(&machine.with(name, value));
        assert_eq!(found[0], id, "{name}={value}: {found:?}");
        assert!(found[1].contains(cause), "{name}={value}: {found:?}");
        assert!(found[2].contains(cure), "{name}={value}: {found:?}");
    }
}

/// Puts `library` in place of the machine's own.
fn replace(machine: &Machine, library: &[u8], under: &str) -> String {
    let dir = machine.dir().join(under);
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("libcuda.so.1"), library).expect("a library");
    dir.to_str().expect("a path of text").to_owned()
}

#[test]
fn a_stub_is_known_by_its_place() {
    let (Some(machine), Some(library)) = (Machine::fake(), fake()) else {
        return;
    };
    let library = std::fs::read(library).expect("the library");
    let dir = replace(&machine, &library, "lib64/stubs");
    std::fs::remove_file(machine.dir().join("lib/libcuda.so.1")).expect("a link");
    let link = machine.dir().join("lib/libcuda.so.1");
    std::os::unix::fs::symlink(Path::new(&dir).join("libcuda.so.1"), link).expect("a link");
    let found = look(&machine);
    assert_eq!(found[0], "stub_library", "{found:?}");
    assert!(
        found[1].contains("/stubs/libcuda.so.1 is a stub"),
        "{found:?}"
    );
}

/// Makes symbols of a library local to it: it still finds them itself, `dlsym` does not.
fn hide(library: &mut [u8], names: &[&str]) {
    fn number<const N: usize>(library: &[u8], at: usize) -> usize {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&library[at..at + N]);
        usize::from_le_bytes(bytes)
    }
    const DYNAMIC_SYMBOLS: usize = 11;
    let (start, each) = (number::<8>(library, 0x28), number::<2>(library, 0x3a));
    let section = |number: usize| start + each * number;
    let symbols = (0..number::<2>(library, 0x3c))
        .map(section)
        .find(|at| number::<4>(library, at + 4) == DYNAMIC_SYMBOLS)
        .expect("a shared library has a table of symbols");
    let texts = number::<8>(
        library,
        section(number::<4>(library, symbols + 0x28)) + 0x18,
    );
    let (first, bytes) = (
        number::<8>(library, symbols + 0x18),
        number::<8>(library, symbols + 0x20),
    );
    let mut hidden = 0;
    for symbol in (first..first + bytes).step_by(24) {
        let name = texts + number::<4>(library, symbol);
        let end = name
            + library[name..]
                .iter()
                .position(|byte| *byte == 0)
                .expect("an end");
        if names
            .iter()
            .any(|hide| hide.as_bytes() == &library[name..end])
        {
            library[symbol + 4] &= 0x0f;
            hidden += 1;
        }
    }
    assert_eq!(hidden, names.len(), "all are symbols of the library");
}

#[test]
fn a_library_that_lacks_functions_is_named_with_them() {
    let (Some(machine), Some(library)) = (Machine::fake(), fake()) else {
        return;
    };
    let mut library = std::fs::read(library).expect("the library");
    hide(&mut library, &["cuMemCreate", "cuIpcCloseMemHandle"]);
    std::fs::remove_file(machine.dir().join("lib/libcuda.so.1")).expect("a link");
    replace(&machine, &library, "lib");
    let found = look(&machine);
    assert_eq!(found[0], "symbol_missing", "{found:?}");
    assert!(
        found[1].contains("lacks cuMemCreate, cuIpcCloseMemHandle"),
        "{found:?}"
    );
    assert!(found[2].contains("reinstall"), "{found:?}");
    hide(&mut library, &["cuDriverGetVersion"]);
    replace(&machine, &library, "lib");
    let found = look(&machine);
    assert!(found[1].ends_with("lacks cuDriverGetVersion"), "{found:?}");
}

#[test]
fn a_file_that_is_no_library_is_no_driver() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    std::fs::remove_file(machine.dir().join("lib/libcuda.so.1")).expect("a link");
    replace(&machine, b"not a library", "lib");
    let found = look(&machine);
    if found[0] != "ok" {
        assert_eq!(found[0], "no_driver_library", "{found:?}");
        assert!(found[1].contains("libcuda.so.1"), "{found:?}");
    }
}

#[test]
fn a_device_is_found_by_its_uuid_wherever_it_is() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let all = machine.agent().tell("devices");
    let uuids: Vec<&str> = all
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(uuids.len(), 2, "{all}");
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut swapped = machine.with("CUDA_VISIBLE_DEVICES", "1,0").agent();
    assert_eq!(swapped.tell(&format!("device {}", uuids[0])), "1");
    assert_eq!(swapped.tell(&format!("device {}", uuids[1])), "0");
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut one = machine.with("CUDA_VISIBLE_DEVICES", uuids[1]).agent();
    assert_eq!(one.tell(&format!("device {}", uuids[1])), "0");
    let error = one
        .ask(&format!("device {}", uuids[0]))
        .expect_err("it is not visible");
    assert!(
        error.contains(&format!("device {} is not visible", uuids[0])),
        "{error}"
    );
    assert!(error.contains(&format!("visible: {}", uuids[1])), "{error}");
    assert!(error.contains("add it to CUDA_VISIBLE_DEVICES"), "{error}");
    let error = one
        .ask("device MIG-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab")
        .expect_err("a slice");
    assert!(error.contains("MIG slice"), "{error}");
    let error = one.ask("device GPU-5a3c").expect_err("too short");
    assert!(error.contains("not the UUID of a device"), "{error}");
}

#[test]
fn uuids_read_as_they_are_written() {
    let text = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
    let uuid: DeviceUuid = text.parse().expect("a UUID");
    assert_eq!(uuid.to_string(), text);
    for text in [
        "",
        "GPU-",
        "GPU-zz3c1b2e-0f1d-4c9a-8a77-0123456789ab",
        "5a3c",
    ] {
        assert!(text.parse::<DeviceUuid>().is_err(), "{text}");
    }
}

#[test]
fn a_fork_is_told_what_it_is() {
    let error = CallError::Forked { pid: 7 };
    assert!(
        error.to_string().contains("a fork cannot use CUDA"),
        "{error}"
    );
    assert_eq!(error.cuda(), None);
}
