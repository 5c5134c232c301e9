//! Puts the library where a program finds the driver.
//!
//! ```no_run
//! use std::process::Command;
//!
//! let dir = mrm_fake_cuda::install::driver_dir("/tmp/driver".as_ref(), &["cuMemCreate"])?;
//! let status = Command::new("some-program").env("LD_LIBRARY_PATH", dir).status()?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const LIBRARY: &str = "libmrm_fake_cuda.so";

/// The built library: `MRM_FAKE_CUDA_LIBRARY`, or the one beside this program.
///
/// # Errors
/// When there is none.
pub fn library() -> io::Result<PathBuf> {
    if let Some(named) = env::var_os("MRM_FAKE_CUDA_LIBRARY") {
        return Ok(named.into());
    }
    let program = env::current_exe()?;
    program
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|dir| [dir.join(LIBRARY), dir.join("deps").join(LIBRARY)])
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            let message = format!(
                "{LIBRARY} is not beside {}: run `cargo build -p mrm-fake-cuda`",
                program.display()
            );
            io::Error::new(io::ErrorKind::NotFound, message)
        })
}

/// Makes a directory for `LD_LIBRARY_PATH` with the library as `libcuda.so.1` and `libcuda.so`.
/// The symbols in `missing` are not there, also not for `dlsym`.
///
/// # Errors
/// When the library is not built, a symbol to leave out is none of it, or the directory cannot be
/// written.
pub fn driver_dir(dir: &Path, missing: &[&str]) -> io::Result<PathBuf> {
    let library = library()?;
    fs::create_dir_all(dir)?;
    let target = dir.join("libcuda.so.1");
    let linked = dir.join("libcuda.so");
    for old in [&target, &linked] {
        if old.symlink_metadata().is_ok() {
            fs::remove_file(old)?;
        }
    }
    if missing.is_empty() {
        symlink(library, &target)?;
    } else {
        let mut image = fs::read(library)?;
        for name in missing {
            hide(&mut image, name)?;
        }
        fs::write(&target, image)?;
    }
    symlink("libcuda.so.1", linked)?;
    Ok(dir.to_owned())
}

/// Renames a symbol in the image. The hash table still leads to it by the old name, but the
/// comparison of the whole name fails, so the loader finds nothing.
fn hide(image: &mut [u8], name: &str) -> io::Result<()> {
    let entry: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
    let mut at = 0;
    let mut found = false;
    while let Some(offset) = image
        .get(at..)
        .and_then(|rest| rest.windows(entry.len()).position(|window| window == entry))
    {
        if let Some(byte) = image.get_mut(at + offset + 1) {
            *byte = b'X';
        }
        at += offset + 1;
        found = true;
    }
    if found {
        return Ok(());
    }
    let message = format!("the driver has no symbol {name}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}
