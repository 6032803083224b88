//! Lets `chipbound` begin with its front (crates/interpreter, `run` and `linker`), which needs no dynamic linker and brings one where it
//! is wanted. For a target that has no front the command begins as every other program.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo:rustc-link-arg-bins=-Wl,-e,chipbound_front,--no-dynamic-linker");
    }
}
