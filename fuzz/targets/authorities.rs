//! A host that is accepted is unambiguous.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| outrigger::proxy::fuzzing::check_authority(input));
