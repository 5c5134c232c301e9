//! Gives the library the name under which programs ask for the driver, and keeps it loaded: its
//! stream threads must never run in unmapped code.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Its own table must not be bound by name: a symbol that is left out has another name.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
}
