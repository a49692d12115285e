//! The `outrigger` binary: passes the command line to `outrigger::cli` and returns its exit
//! code.

use std::process::ExitCode;

/// Global allocator. jemalloc returns memory to the system after load peaks;
/// `.cargo/config.toml` contains its build settings and the reason.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outrigger::cli::run(std::env::args_os())
}
