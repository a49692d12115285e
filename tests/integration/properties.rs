//! Properties for any input: quantities, paths and damaged policy files.

use std::{collections::HashMap, time::Duration};

use outrigger::policy::{
    self,
    matching::PathMatchSpec,
    source::PolicySource,
    units::{ByteSize, PolicyDuration, StatusRange},
};
use proptest::prelude::*;

/// Shipped policy that uses most fields.
const POLICY: &str = include_str!("../../policies/default.yaml");

/// Returns the pattern of a definition in the JSON schema.
fn schema_pattern(definition: &str) -> regex::Regex {
    let schema = policy::json_schema();
    regex::Regex::new(schema["$defs"][definition]["pattern"].as_str().unwrap()).unwrap()
}

/// Naive model of a prefix match (Gateway API): a prefix matches element by element, split by `/`.
fn is_prefix_by_elements(prefix: &str, path: &str) -> bool {
    let prefix: Vec<&str> = prefix.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    path.len() >= prefix.len() && path[..prefix.len()] == prefix
}

/// Returns the largest character boundary of `text` that is at most `index`.
fn floor_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|index| text.is_char_boundary(*index))
        .unwrap()
}

/// Replaces up to `cut` bytes of [`POLICY`] at a relative position by other text.
fn damage_policy(position: f64, cut: usize, inserted: &str) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an offset in a short text"
    )]
    let from = floor_boundary(POLICY, (position * POLICY.len() as f64) as usize);
    let to = floor_boundary(POLICY, from + cut).max(from);
    [&POLICY[..from], inserted, &POLICY[to..]].concat()
}

proptest! {
    #[test]
    fn a_duration_round_trips_through_its_text(millis in 0_u64..99_999 * 3_600_000) {
        let duration = PolicyDuration(Duration::from_millis(millis));
        prop_assert_eq!(duration.to_string().parse::<PolicyDuration>(), Ok(duration));
    }

    #[test]
    fn a_duration_parses_exactly_if_the_schema_accepts_it(
        text in "([0-9]{0,6}(h|m|s|ms|d| )){0,5}",
    ) {
        let is_accepted = schema_pattern("Duration").is_match(&text);
        prop_assert_eq!(text.parse::<PolicyDuration>().is_ok(), is_accepted, "{}", text);
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0_u64..1_000_000, unit in 0_usize..7) {
        let (suffix, factor) = [
            ("", 1),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
        ][unit];
        let size = ByteSize(number * factor);
        prop_assert_eq!(format!("{number}{suffix}").parse::<ByteSize>(), Ok(size));
    }

    #[test]
    fn parsing_a_quantity_never_panics(text in ".{0,12}") {
        // The results do not matter.
        _ = text.parse::<PolicyDuration>();
        _ = text.parse::<ByteSize>();
        _ = text.parse::<StatusRange>();
    }

    #[test]
    fn a_prefix_matches_by_element(
        prefix in "(/[ab]{1,2}){1,3}",
        path in "(/[ab]{0,2}){1,4}",
    ) {
        let is_match = PathMatchSpec::Prefix(prefix.clone()).matches(&path);
        let expected = is_prefix_by_elements(&prefix, &path);
        prop_assert_eq!(is_match, expected, "{} {}", prefix, path);
    }

    /// A damaged file is accepted or rejected. Each error is located inside the file.
    #[test]
    fn the_errors_of_a_damaged_policy_are_located_inside_the_file(
        position in 0.0_f64..1.0,
        cut in 0_usize..40,
        inserted in "[a-z0-9:{}\\[\\]#&*!|>'\"% \n-]{0,6}",
    ) {
        let text = damage_policy(position, cut, &inserted);
        let lines = text.lines().count();
        let source = PolicySource::from_text("damaged.yaml", text.clone());
        if let Err(faults) = policy::load_source(&source, &HashMap::new()) {
            prop_assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                let description = fault.to_single_line();
                prop_assert!(
                    (1..=lines + 1).contains(&fault.span.line),
                    "{}\n{}",
                    description,
                    text
                );
                prop_assert!(fault.span.column >= 1, "{}", description);
                prop_assert!(!fault.message.is_empty());
            }
        }
    }
}
