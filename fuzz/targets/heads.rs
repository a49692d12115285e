//! Heads of HTTP/1 mean the same however their bytes arrive.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| outrigger::proxy::fuzzing::check_heads(input));
