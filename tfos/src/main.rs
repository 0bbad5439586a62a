//! The `tfos` command: submits jobs, runs executors, and carries the built-in applications.

fn main() -> std::process::ExitCode {
    tfos::run_all(builtin())
}

#[cfg(feature = "torch")]
fn builtin() -> Vec<std::sync::Arc<dyn tfos::Application>> {
    tfos::apps::all()
}

#[cfg(not(feature = "torch"))]
fn builtin() -> Vec<std::sync::Arc<dyn tfos::Application>> {
    vec![]
}
