//! The `outrigger` binary: reads the command line and hands over.

use std::process::ExitCode;

/// Gives memory back after load; `.cargo/config.toml` says how it is built and why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outrigger::cli::run(std::env::args_os())
}
