//! Any text is accepted as a policy, or rejected with errors located inside it. Parsing any text as
//! a file of endpoints does not panic.
#![no_main]

use std::{collections::HashMap, sync::Arc};

use libfuzzer_sys::fuzz_target;
use outrigger::policy::{self, diff, endpoints, source::PolicySource};

fuzz_target!(|text: &str| {
    let source = PolicySource::from_text("f.yaml", text.to_owned());
    match policy::load_source(&source, &HashMap::new()) {
        Ok(loaded) => assert!(
            diff::diff(&loaded.snapshot, &loaded.snapshot).is_empty(),
            "a policy differs from itself"
        ),
        Err(faults) => {
            assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                let span = &fault.span;
                assert!(span.line <= text.split(['\n', '\r']).count(), "{fault:?}");
                assert!(span.column <= span.text.chars().count() + 1, "{fault:?}");
            }
            // Rendering must not panic on any source line.
            _ = faults.to_human();
        }
    }
    _ = endpoints::parse(&Arc::from("e.yaml"), text);
});
