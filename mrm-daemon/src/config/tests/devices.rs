//! `[device]`: what is wrong with it is said where it is written.

use super::{GPU_A, GPU_B, Host};

#[test]
fn every_problem_of_devices_is_reported_with_its_place_and_remedy() {
    let host = Host::new().file(
        "[device]
enabled = true
sharing = \"ipc\"
uuids = [\"MIG-5a3c\"]
budget_bytes = \"1MiB\"
reserve_bytes = \"100%\"
block_bytes = 1000
stage_bytes = \"10%\"
stage_slots = 1
gpus = 3

[device.gpu.\"0\"]

[device.gpu.GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab]
budget = 1
reserve_bytes = \"lots\"

[device.gpu.GPU-5a3c1b2e0f1d4c9a8a770123456789ab]

[[model]]
name = \"a\"
path = \"/a\"
granularity = \"layer\"
warm_on = \"best\"

[[model]]
name = \"b\"
path = \"/b\"
pin = true
warm_on = \"cuda:0\"

[[model]]
name = \"c\"
path = \"/c\"
pin = true
warm_on = \"MIG-5a3c\"
",
    );
    let at = "DIR/mrm.toml";
    let expected = [
        "2:1: device.enabled: has the type boolean; give a string in quotes or a whole number",
        "3:1: device.sharing = \"ipc\": not a known word; give one of auto, vmm, legacy",
        "4:1: device.uuids = \"MIG-5a3c\": MIG-5a3c is a MIG slice: name a whole device, its UUID \
         is in `nvidia-smi -L`; give it as `nvidia-smi -L` lists it, GPU-...",
        "5:1: device.budget_bytes = \"1MiB\": too small to hold any model; give at least 2MiB",
        "6:1: device.reserve_bytes = \"100%\": leaves nothing to models; give a smaller share, or \
         set device.enabled = \"no\"",
        "7:1: device.block_bytes = \"1000\": not a multiple of 256, where each tensor begins; \
         write for example \"256MiB\"",
        "8:1: device.stage_bytes = \"10%\": is a share, of nothing; give from 64KiB to 1GiB",
        "9:1: device.stage_slots = \"1\": out of range; give a whole number from 2 to 64",
        "10:1: device.gpus: is not a setting; did you mean `gpu`?",
        "12:13: device.gpu = \"0\": \"0\" is not the UUID of a device: it reads GPU-, then 32 \
         hexadecimal digits; give it as `nvidia-smi -L` lists it, GPU-...",
        "15:1: device.gpu.\"GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab\".budget: is not a setting; \
         did you mean `budget_bytes`?",
        "16:1: device.gpu.\"GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab\".reserve_bytes = \"lots\": \
         not a number of bytes; write for example \"8GiB\", \"50%\" or a plain number of bytes",
        "18:13: device.gpu = \"GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab\": is given twice, first \
         at DIR/mrm.toml:14:13; give each device one table",
        "23:1: model.granularity = \"layer\": not a known word; give one of model, block, tensor",
        "24:1: model.warm_on: is only for a model that is pinned; add `pin = true`, or remove it",
        "30:1: model.warm_on = \"cuda:0\": neither a known word nor the UUID of a device, GPU- and 32 \
         hexadecimal digits; give one of host, device, best, or a device's UUID, GPU-...",
        "36:1: model.warm_on = \"MIG-5a3c\": a MIG slice, and only a whole device can be named; give \
         one of host, device, best, or a device's UUID, GPU-...",
    ];
    let expected: String = expected.map(|line| format!("\n  {at}:{line}")).concat();
    let report = host.report([]);
    assert_eq!(
        report,
        format!("the configuration has 17 problems{expected}")
    );
}

#[test]
fn devices_are_named_once_and_a_table_is_for_one_of_them() {
    let twice = format!("--device-uuids={GPU_A}, {GPU_A}");
    let report = Host::new().report([&twice]);
    let line = format!("{GPU_A} is given twice; name each device once");
    assert!(report.contains(&line), "{report}");

    let table = format!("[device.gpu.\"{GPU_B}\"]\nbudget_bytes = '50%'");
    let host = Host::new().file(&table);
    let flag = format!("--device-uuids={GPU_A}");
    let line = format!(
        "DIR/mrm.toml:1:13: device.gpu = \"{GPU_B}\": is not one of device.uuids; add it there, \
         or remove this table"
    );
    assert!(
        host.report([&flag]).contains(&line),
        "{}",
        host.report([&flag])
    );
    assert_eq!(host.load([]).unwrap().config.device.gpus.len(), 1);

    let text = format!("[device]\nuuids = \"{GPU_A}\"");
    let report = Host::new().file(&text).report([]);
    assert!(
        report.contains("is not a list; write for example [\"GPU-...\"]"),
        "{report}"
    );
    let report = Host::new().file("[device]\nuuids = [1]").report([]);
    assert!(
        report.contains("has something that is not a string"),
        "{report}"
    );
    for (text, said) in [
        (
            "private_uids = 7",
            "is not a list; write for example [\"1000\"]",
        ),
        (
            "private_uids = [\"ann\"]",
            "ann is not the number of a user",
        ),
        (
            "private_uids = [\"7\", \"7\"]",
            "7 is given twice; name each user once",
        ),
    ] {
        let report = Host::new().file(&format!("[device]\n{text}")).report([]);
        assert!(report.contains(said), "{report}");
    }
}
