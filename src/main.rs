//! The `outrigger` binary: reads the command line and hands over.

use std::process::ExitCode;

/// Gives memory back after load, and costs a tenth less CPU than the system's; see `benches/README.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outrigger::cli::run(std::env::args_os())
}
