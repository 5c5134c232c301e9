//! Gives `libmrm.so` its soname: the name that programs linked with it ask the loader for. It
//! changes with the major version of the C interface and with nothing else. Once loaded it stays:
//! the thread of a client may still be about to end when a program closes the library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmrm.so.0");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
