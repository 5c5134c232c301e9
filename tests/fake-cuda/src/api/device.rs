//! Initialisation and devices.

use std::ffi::c_char;

use crate::abi::{Ordinal, Uuid};
use crate::api::{ordinal_out, physical};
use crate::args::Out;
use crate::call::{self, driver};
use crate::code;
use crate::process::{initialise, process};
use crate::settings::{Settings, settings, uuid};

driver! {
    /// Prepares the driver. Fails with `MRM_FAKE_CUDA_INIT_ERROR`, with 100 when no device is
    /// visible, and with 3 in a forked child of a process that was prepared.
    Nothing fn cuInit(flags: u32) {
        let settings = settings()?;
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        if settings.init_error != 0 {
            return Err(settings.init_error);
        }
        if call::is_forked() {
            return Err(code::NOT_INITIALIZED);
        }
        raise_open_files();
        initialise(settings)?;
        call::initialised();
        Ok(())
    }

    /// The version of the interface, without `cuInit`.
    Nothing fn cuDriverGetVersion(version: Out<i32>) {
        version.set(settings()?.driver_version)
    }

    /// How many devices `CUDA_VISIBLE_DEVICES` leaves.
    Init fn cuDeviceGetCount(count: Out<i32>) {
        count.set(ordinal_out(process()?.contexts.len()))
    }

    /// The device of an ordinal.
    Init fn cuDeviceGet(device: Out<Ordinal>, ordinal: i32) {
        process()?.device(ordinal)?;
        device.set(ordinal)
    }

    /// Its name, which tells the physical index.
    Init fn cuDeviceGetName(name: Out<c_char>, len: i32, device: Ordinal) {
        let process = process()?;
        let physical = physical(&process, process.device(device)?)?;
        name.set_text(&format!("Fake GPU {physical}"), len)
    }

    /// Its UUID.
    Init fn cuDeviceGetUuid(out: Out<Uuid>, device: Ordinal) {
        let process = process()?;
        out.set(uuid(physical(&process, process.device(device)?)?))
    }

    /// Its UUID; for a MIG slice it would be the slice's.
    Init fn cuDeviceGetUuid_v2(out: Out<Uuid>, device: Ordinal) {
        let process = process()?;
        out.set(uuid(physical(&process, process.device(device)?)?))
    }

    /// Its place on the bus.
    Init fn cuDeviceGetPCIBusId(id: Out<c_char>, len: i32, device: Ordinal) {
        let process = process()?;
        let bus = physical(&process, process.device(device)?)? + 1;
        id.set_text(&format!("0000:{bus:02X}:00.0"), len)
    }

    /// One of its properties; those that say nothing about sharing memory are zero.
    Init fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: Ordinal) {
        let process = process()?;
        let physical = physical(&process, process.device(device)?)?;
        value.set(self::attribute(process.settings, physical, attribute)?)
    }

    /// Its memory.
    Init fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: Ordinal) {
        let process = process()?;
        process.device(device)?;
        bytes.set(crate::api::size(process.settings.capacity_bytes)?)
    }

    /// Whether kernels of one device may use memory of another.
    Init fn cuDeviceCanAccessPeer(can: Out<i32>, device: Ordinal, peer: Ordinal) {
        let process = process()?;
        let (device, peer) = (process.device(device)?, process.device(peer)?);
        can.set(i32::from(device != peer && process.settings.peer))
    }
}

/// Attributes by their numbers in `cuda.h`.
fn attribute(settings: &Settings, physical: u32, attribute: u32) -> Result<i32, u32> {
    let value = match attribute {
        0 | 149.. => return Err(code::INVALID_VALUE),
        1..=3 => 1024,                                  // threads per block
        10 => 32,                                       // warp size
        13 | 36 => 1_500_000,                           // clocks in kHz
        16 => 108,                                      // multiprocessors
        33 => i32::try_from(physical + 1).unwrap_or(0), // PCI bus
        37 => 5120,                                     // bits of the memory bus
        40 => 2,                                        // copy engines
        15 | 19 | 31 | 32 => 1,                         // overlap, mapped host memory, ECC
        41 => 1,                                        // UNIFIED_ADDRESSING
        75 => 8,                                        // COMPUTE_CAPABILITY_MAJOR
        76 => 0,                                        // COMPUTE_CAPABILITY_MINOR
        91 | 99 => 1,                                   // host registration, same pointer
        102 => i32::from(settings.vmm),                 // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        103 => i32::from(settings.posix_fd),            // HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        113 => i32::from(settings.read_only_register),  // READ_ONLY_HOST_REGISTER_SUPPORTED
        125 => i32::from(settings.ipc),                 // IPC_EVENT_SUPPORTED
        _ => 0,
    };
    Ok(value)
}

/// A block costs a descriptor here, and none on hardware: makes room for many.
fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, many blocks fail as `CUDA_ERROR_OPERATING_SYSTEM`, which says enough.
    let _raised = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}
