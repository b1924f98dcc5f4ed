//! The guard as a program of its own, for the tests of this crate.

fn main() -> std::process::ExitCode {
    farside_hooks::guard_main()
}
