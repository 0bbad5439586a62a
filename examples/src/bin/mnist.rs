//! The built-in `mnist` application as a program of its own: `cargo run -p tfos-examples --bin mnist` is a whole
//! cluster, `tfos submit target/debug/mnist` gives it any other shape.

fn main() -> std::process::ExitCode {
    tfos::run(tfos::apps::mnist::Mnist)
}
