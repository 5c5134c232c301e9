//! `mrm-fake-cuda-dir DIR [SYMBOL...]` makes a directory for `LD_LIBRARY_PATH` and prints it.
//! The symbols named are left out of the library.

use std::env;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((dir, missing)) = args.split_first() else {
        eprintln!("usage: mrm-fake-cuda-dir DIR [SYMBOL...]");
        return ExitCode::from(2);
    };
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let made = mrm_fake_cuda::install::driver_dir(Path::new(dir), &missing)
        .and_then(std::path::absolute)
        .and_then(|dir| writeln!(io::stdout(), "{}", dir.display()));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mrm-fake-cuda-dir: {error}");
            ExitCode::FAILURE
        }
    }
}
