//! What the machine is: for the head of the results.

use crate::report::Recorder;
use crate::scale::MIB;
use crate::{Anything, smi};
use mrm_cuda::probe;
use std::fs;

/// The step.
pub(crate) fn step(recorder: &mut Recorder) -> Anything<()> {
    let driver = probe()?;
    recorder.fact("driver interface", driver.version().to_string())?;
    recorder.fact("driver library", driver.library().to_owned())?;
    let devices = driver.devices()?;
    for device in &devices {
        let (major, minor) = device.compute_capability;
        let text = format!(
            "{}, {} MiB, {}, capability {major}.{minor}, at {}, vmm {}, posix fd {}, read-only \
             register {}",
            device.name,
            device.total_bytes / MIB,
            device.uuid,
            device.pci_bus_id,
            device.vmm,
            device.posix_fd,
            device.read_only_register
        );
        recorder.fact(&format!("device {}", device.ordinal), text)?;
    }
    let first = devices.first().ok_or("no device")?;
    recorder.fact("device", first.name.clone())?;
    match smi::describe() {
        Ok(said) => {
            recorder.fact("driver", said.driver)?;
            recorder.fact("pcie", said.pcie)?;
        }
        Err(why) => {
            recorder.fact("driver", driver.version().to_string())?;
            recorder.skip("the PCIe link and the release of the driver", why)?;
        }
    }
    let line = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    recorder.fact("kernel", line("/proc/sys/kernel/osrelease"))?;
    recorder.fact("memory", line("/proc/meminfo"))?;
    let shmem = line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    recorder.fact("transparent huge pages of memfds", shmem)?;
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model
        .unwrap_or_default()
        .trim_start_matches([' ', '\t', ':']);
    recorder.fact("processors", format!("{cpus} x {model}"))
}
