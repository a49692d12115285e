//! What holds for any input: quantities, paths, and policy files that were damaged.

use std::{collections::HashMap, time::Duration};

use outrigger::policy::{
    self,
    matching::PathMatchSpec,
    source::{PolicyFile, PolicySource},
    units::{ByteSize, PolicyDuration, StatusRange},
};
use proptest::prelude::*;

/// A shipped policy that uses most of what there is.
const POLICY: &str = include_str!("../../policies/default.yaml");

/// What its readers promise to users.
fn schema_pattern(definition: &str) -> regex::Regex {
    let schema = policy::json_schema();
    regex::Regex::new(schema["$defs"][definition]["pattern"].as_str().unwrap()).unwrap()
}

/// Gateway API: "a prefix is matched element by element, split by `/`".
fn is_prefix_by_elements(prefix: &str, path: &str) -> bool {
    let prefix: Vec<&str> = prefix.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    path.len() >= prefix.len() && path[..prefix.len()] == prefix
}

proptest! {
    #[test]
    fn a_duration_round_trips_through_its_text(millis in 0_u64..99_999 * 3_600_000) {
        let span = PolicyDuration(Duration::from_millis(millis));
        prop_assert_eq!(span.to_string().parse::<PolicyDuration>(), Ok(span));
    }

    #[test]
    fn a_duration_parses_exactly_if_the_schema_accepts_it(text in "([0-9]{0,6}(h|m|s|ms|d| )){0,5}") {
        prop_assert_eq!(text.parse::<PolicyDuration>().is_ok(), schema_pattern("Duration").is_match(&text), "{}", text);
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0_u64..1_000_000, unit in 0_usize..7) {
        let (suffix, factor) = [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)][unit];
        prop_assert_eq!(format!("{number}{suffix}").parse::<ByteSize>(), Ok(ByteSize(number * factor)));
    }

    #[test]
    fn parsing_a_quantity_never_panics(text in ".{0,12}") {
        // Only that it comes back matters.
        _ = (text.parse::<PolicyDuration>(), text.parse::<ByteSize>(), text.parse::<StatusRange>());
    }

    #[test]
    fn a_prefix_matches_by_element(prefix in "(/[ab]{1,2}){1,3}", path in "(/[ab]{0,2}){1,4}") {
        prop_assert_eq!(PathMatchSpec::Prefix(prefix.clone()).matches(&path), is_prefix_by_elements(&prefix, &path), "{} {}", prefix, path);
    }

    /// A file that was cut, or into which something slipped, is read or refused; each fault has a place inside the file.
    #[test]
    fn the_errors_of_a_damaged_policy_are_located_inside_the_file(position in 0.0_f64..1.0, cut in 0_usize..40, inserted in "[a-z0-9:{}\\[\\]#&*!|>'\"% \n-]{0,6}") {
        let boundary = |index: usize| (0..=index.min(POLICY.len())).rev().find(|index| POLICY.is_char_boundary(*index)).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a short text")]
        let from = boundary((position * POLICY.len() as f64) as usize);
        let to = boundary(from + cut).max(from);
        let text = [&POLICY[..from], inserted.as_str(), &POLICY[to..]].concat();
        let lines = text.lines().count();
        let source = PolicySource::from_files(vec![PolicyFile { name: "damaged.yaml".into(), text: text.clone() }]);
        if let Err(faults) = policy::load_source(&source, &HashMap::new()) {
            prop_assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                prop_assert!((1..=lines + 1).contains(&fault.span.line), "{}\n{}", fault.to_single_line(), text);
                prop_assert!(fault.span.column >= 1, "{}", fault.to_single_line());
                prop_assert!(!fault.message.is_empty());
            }
        }
    }
}
