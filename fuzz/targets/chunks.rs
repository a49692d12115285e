//! Chunked bodies mean the same however their bytes arrive, and never end early.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| outrigger::proxy::fuzzing::check_chunks(input));
