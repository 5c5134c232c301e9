//! The GPU driver: whether there is one.

use super::Check;
use std::env;
use std::path::{Path, PathBuf};

const LIBRARY: &str = "libcuda.so.1";
const DRIVER_VERSION: &str = "/proc/driver/nvidia/version";
/// Where distributions, containers and WSL keep it.
const DIRECTORIES: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

/// Says which driver there is. The library is looked for, not loaded.
pub(super) fn check() -> Check {
    const ID: &str = "gpu";
    let by_path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let directories = env::split_paths(&by_path).chain(DIRECTORIES.map(PathBuf::from));
    let library = directories
        .map(|dir| dir.join(LIBRARY))
        .find(|path| path.exists());
    let driver = Path::new(DRIVER_VERSION).exists();
    match (library, driver) {
        (Some(library), true) => Check::info(ID, format!("driver loaded, {}", library.display())),
        (Some(library), false) => Check::info(
            ID,
            format!(
                "{}, but no driver is loaded: host tier only",
                library.display()
            ),
        ),
        (None, true) => Check::info(
            ID,
            format!("driver loaded, but no {LIBRARY}: host tier only"),
        ),
        (None, false) => Check::info(ID, "no GPU driver: host tier only"),
    }
}
