//! Any text is a policy or is refused with places that exist; any text is a file of endpoints or is refused.
#![no_main]

use std::{collections::HashMap, sync::Arc};

use libfuzzer_sys::fuzz_target;
use outrigger::policy::{
    self, diff, endpoints,
    source::{PolicyFile, PolicySource},
};

fuzz_target!(|text: &str| {
    let source = PolicySource::from_files(vec![PolicyFile {
        name: "f.yaml".into(),
        text: text.to_owned(),
    }]);
    match policy::load_source(&source, &HashMap::new()) {
        Ok(loaded) => assert!(
            diff::diff(&loaded.snapshot, &loaded.snapshot).is_empty(),
            "a set differs from itself"
        ),
        Err(faults) => {
            assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                let span = &fault.span;
                assert!(span.line <= text.split(['\n', '\r']).count(), "{fault:?}");
                assert!(span.column <= span.text.chars().count() + 1, "{fault:?}");
            }
            // The rendering must cope with whatever the line holds.
            _ = faults.to_human();
        }
    }
    _ = endpoints::parse(&Arc::from("e.yaml"), text);
});
