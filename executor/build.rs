//! Builds the small C++ parts against the libtorch that torch-sys found, and lets this crate's tests find it by rpath.
#[cfg(feature = "torch")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::path::PathBuf;

    const PARTS: [&str; 4] =
        ["src/torch/shim.cpp", "src/torch/module.cpp", "src/torch/hooks.cpp", "src/torch/memory.cpp"];
    println!("cargo:rerun-if-changed=build.rs");
    PARTS.iter().for_each(|part| println!("cargo:rerun-if-changed={part}"));
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let found = std::env::var("DEP_TCH_LIBTORCH_LIB")?;
    let lib = PathBuf::from(&found).canonicalize().map_err(|error| format!("libtorch at `{found}`: {error}"))?;
    let include = lib.join("../include");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .flag("-w")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(PARTS)
        .try_compile("tfos_torch_shim")?;
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    Ok(())
}

#[cfg(not(feature = "torch"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
