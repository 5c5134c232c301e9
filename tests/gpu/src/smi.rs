//! What `nvidia-smi` says, where there is one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::process::Command;

/// The first device, as the tool describes it.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) driver: String,
    /// Generation and width of the link, now and at most.
    pub(crate) pcie: String,
}

/// Asks for one line about the first device.
fn line(query: &str) -> Result<Vec<String>, String> {
    let query = format!("--query-gpu={query}");
    let text = ask(&[&query, "--format=csv,noheader,nounits", "--id=0"])?;
    let first = text.lines().next().ok_or("nvidia-smi lists no device")?;
    Ok(first
        .split(',')
        .map(|word| word.trim().to_owned())
        .collect())
}

fn ask(args: &[&str]) -> Result<String, String> {
    let output = Command::new("nvidia-smi").args(args).output();
    let output = output.map_err(|error| format!("nvidia-smi: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("nvidia-smi: {} {said}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Name, UUID, driver and link of the first device.
pub(crate) fn describe() -> Result<Described, String> {
    let words = line(
        "name,uuid,driver_version,pcie.link.gen.current,pcie.link.gen.max,\
         pcie.link.width.current,pcie.link.width.max",
    )?;
    let word = |at: usize| words.get(at).cloned().unwrap_or_default();
    Ok(Described {
        name: word(0),
        uuid: word(1),
        driver: word(2),
        pcie: format!(
            "gen {} of {}, x{} of x{}",
            word(3),
            word(4),
            word(5),
            word(6)
        ),
    })
}

/// MiB in use on the first device.
pub(crate) fn used_mib() -> Result<u64, String> {
    let words = line("memory.used")?;
    let first = words.first().map_or("", String::as_str);
    first
        .parse()
        .map_err(|_| format!("nvidia-smi says {first:?} of the memory in use"))
}

/// MiB by process, as far as the tool sees processes.
pub(crate) fn used_by() -> Result<BTreeMap<u32, String>, String> {
    let text = ask(&[
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
        "--id=0",
    ])?;
    let parse = |line: &str| {
        let (pid, used) = line.split_once(',')?;
        Some((pid.trim().parse().ok()?, used.trim().to_owned()))
    };
    Ok(text.lines().filter_map(parse).collect())
}
