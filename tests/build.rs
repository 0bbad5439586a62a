//! Gives the test binaries the place of libtorch, so that they start without an environment variable.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    // Set by torch-sys, which is a dependency only with the feature `torch`.
    if let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", std::path::Path::new(&lib).canonicalize()?.display());
    }
    Ok(())
}
