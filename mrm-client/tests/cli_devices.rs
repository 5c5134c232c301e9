//! What `mrm` says of devices: nothing where there are none, and all of them where there are some.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli_support;

use cli_support::{Fake, usual};
#[cfg(feature = "cuda")]
use cli_support::{Run, mrm};
use serde_json::{Value, json};

const READY: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
const LOST: &str = "GPU-00000001-0000-0000-0000-000000000000";
const GIB: u64 = 1 << 30;

fn devices() -> Value {
    let device = |uuid: &str, state: &str| {
        json!({
            "uuid": uuid, "name": "H100 \u{1b}[2J", "pci_bus_id": "0000:3b:00.0", "state": state,
            "cause": null, "cure": null, "sharing": "vmm", "sharing_why": "a child could read",
            "total_bytes": 80 * GIB, "free_bytes": 60 * GIB, "reserve_bytes": GIB,
            "budget_bytes": 72 * GIB, "limit_bytes": 64 * GIB, "charged_bytes": 16 * GIB,
            "freeing_bytes": 0, "context_bytes": GIB / 2, "images": 2, "loading": 1, "leases": 3,
            "a_field_of_the_future": {},
        })
    };
    let mut lost = device(LOST, "lost");
    lost["cause"] = "CUDA error 719".into();
    lost["cure"] = "see dmesg".into();
    json!({
        "driver": {"state": "ready", "version": "12.4", "library": "/x/libcuda.so.1",
                   "cause": null, "cure": null},
        "devices": [device(READY, "ready"), lost],
    })
}

/// The usual daemon, with devices.
fn with(devices: Value) -> Fake {
    Fake::serving(move |method, target| {
        let (status, body) = usual(method, target);
        let mut body: Value = serde_json::from_str(&body).unwrap();
        let on = json!([
            {"uuid": READY, "state": "resident", "bytes": 2 * GIB, "loaded_bytes": 2 * GIB,
             "leases": 1},
            {"uuid": LOST, "state": "loading", "bytes": 2 * GIB, "loaded_bytes": GIB, "leases": 0},
        ]);
        match target.split('?').next().unwrap() {
            "/v1/status" => body["devices"] = devices.clone(),
            "/v1/models" => body["models"][0]["devices"] = on,
            "/v1/models/org/bert" => body["devices"] = on,
            _ => {}
        }
        (status, body.to_string())
    })
}

/// A daemon whose probe of the driver ended like this.
fn without(state: &str) -> Fake {
    with(json!({
        "driver": {"state": state, "version": null, "library": null, "cause": "made up",
                   "cure": "do something"},
        "devices": [],
    }))
}

#[test]
fn status_and_top_show_each_device_and_its_books() {
    let fake = with(devices());
    let run = fake.run(&["status"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    for part in [
        "device    GPU-5a3c1b2e H100 \\u{1b}[2J: 16.0 GiB of 64.0 GiB (25 %)\n",
        "          2 models, 1 loading, 3 leases, lent by vmm, 60.0 GiB of 80.0 GiB free, \
         512.0 MiB for mrmd itself, others leave less than the budget of 72.0 GiB\n",
        "device    GPU-00000001 H100 \\u{1b}[2J: lost\n          CUDA error 719; cure: see dmesg\n",
    ] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    let json = fake.run(&["status", "--json"]).json();
    assert_eq!(json["devices"], devices());
    let top = fake.run(&["top"]).stdout;
    assert!(top.contains("GPU-5a3c1b2e H100") && top.contains("GPU-00000001"));
}

#[test]
fn models_say_where_they_are() {
    let fake = with(devices());
    let expected = "\
NAME      STATE         SIZE  HUGE  LEASES  PIN     LAST USE  DEVICES
org/bert  resident  86.7 MiB  99 %       2  pinned  3 s ago   GPU-5a3c1b2e, GPU-00000001 loading 50 %
org/zero  absent           -     -       0          -
";
    assert_eq!(fake.run(&["ls"]).stdout, expected);
    let show = fake.run(&["show", "org/bert"]).stdout;
    for part in [
        "DEVICE                                    STATE            SIZE  KEPT FREE  LEASES\n",
        "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab  resident      2.0 GiB        0 B       1\n",
        "GPU-00000001-0000-0000-0000-000000000000  loading 50 %  2.0 GiB        0 B       0\n",
    ] {
        assert!(show.contains(part), "{part}: {show}");
    }
}

#[test]
fn a_driver_that_does_not_work_is_named_and_one_that_is_not_there_is_not() {
    for state in ["stub", "too_old", "symbol_missing", "init_failed"] {
        let run = without(state).run(&["status"]);
        let lines = "devices   none: made up\n          cure: do something\n";
        assert!(run.stdout.contains(lines), "{state}: {}", run.stdout);
    }
    let usual = Fake::usual().run(&["status"]).stdout;
    for state in ["no_driver", "no_device", "disabled", "ready"] {
        assert_eq!(without(state).run(&["status"]).stdout, usual, "{state}");
    }
}

#[test]
fn doctor_judges_what_the_daemon_found() {
    let run = with(devices()).run(&["doctor"]);
    let ready = format!(
        "PASS  device            H100 \\u{{1b}}[2J ({READY}): 64.0 GiB of 80.0 GiB for models, lent \
         by vmm (a child could read)\n"
    );
    assert!(run.stdout.contains(&ready), "{}", run.stdout);
    let lost = format!(
        "FAIL  device            H100 \\u{{1b}}[2J ({LOST}) is lost: CUDA error 719\n                        \
         -> see dmesg\n"
    );
    assert!(run.stdout.contains(&lost), "{}", run.stdout);

    let run = without("too_old").run(&["doctor", "--json"]);
    let json = run.json();
    assert_eq!(json["device_tier"]["mrmd"], "too_old");
    let found = json["checks"].as_array().unwrap().iter();
    let tier = found.filter(|row| row["id"] == "device_tier").count();
    // Said once: here, if the driver is too old for this process as well, or else of the daemon.
    let here = json["device_tier"]["here"]["state"].as_str().unwrap();
    assert_eq!(tier, usize::from(here != "too_old"), "{here}");

    // A daemon that is older than its device tier.
    let json = Fake::usual().run(&["doctor", "--json"]).json();
    assert_eq!(json["device_tier"]["mrmd"], Value::Null);
}

/// Doctor on a machine with this driver: the state, and the line on it.
#[cfg(feature = "cuda")]
fn doctor_with(missing: &[&str], setting: (&str, &str)) -> (String, Value) {
    let machine = tempfile::tempdir().unwrap();
    let library = mrm_fake_cuda::install::driver_dir(&machine.path().join("lib"), missing).unwrap();
    let run = Run::of(
        mrm(&["doctor", "--json"])
            .env("MRM_RUNTIME_DIR", machine.path())
            .env("LD_LIBRARY_PATH", library)
            .env("MRM_FAKE_CUDA_DIR", machine.path().join("devices"))
            .env(setting.0, setting.1),
    );
    let json = run.json();
    let mut lines = json["checks"].as_array().unwrap().iter();
    let line = lines.find(|row| row["id"] == "gpu").unwrap().clone();
    let here = &json["device_tier"]["here"]["state"];
    (here.as_str().unwrap().to_owned(), line)
}

#[cfg(feature = "cuda")]
#[test]
fn doctor_tells_each_way_in_which_a_driver_can_fail() {
    let (code, version) = ("MRM_FAKE_CUDA_INIT_ERROR", "MRM_FAKE_CUDA_DRIVER_VERSION");
    for (missing, setting, state, part) in [
        (&[][..], (code, "34"), "stub", "stub"),
        (&[], (version, "11030"), "too_old", "11.3, and 11.4"),
        (
            &["cuMemCreate"],
            (code, "0"),
            "symbol_missing",
            "cuMemCreate",
        ),
        (&[], (code, "803"), "init_failed", "(803)"),
    ] {
        let (found, line) = doctor_with(missing, setting);
        assert_eq!(found, state, "{line}");
        assert_eq!(line["level"], "warn", "{line}");
        assert!(line["finding"].as_str().unwrap().contains(part), "{line}");
        assert!(line["cure"].is_string(), "{line}");
    }
    // On a machine whose kernel has the driver's module this is a warning.
    let (found, line) = doctor_with(&[], (code, "100"));
    assert_eq!(found, "no_device", "{line}");
    assert!(
        line["finding"].as_str().unwrap().contains("no device"),
        "{line}"
    );
}

#[cfg(feature = "cuda")]
#[test]
fn doctor_names_the_devices_that_a_client_would_see() {
    let (found, line) = doctor_with(&[], ("MRM_FAKE_CUDA_DEVICES", "2"));
    assert_eq!(
        (found.as_str(), &line["level"]),
        ("ready", &"pass".into()),
        "{line}"
    );
    let finding = line["finding"].as_str().unwrap();
    assert!(finding.starts_with("driver 12.4 in /"), "{finding}");
    assert_eq!(finding.matches("(GPU-").count(), 2, "{finding}");
}
