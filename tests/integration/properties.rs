//! What holds for any input: quantities, paths, and policy files that were damaged.

use std::{collections::HashMap, time::Duration};

use outrigger::policy::{
    self,
    matching::PathSpec,
    source::{File, Source},
    units::{Size, Span, StatusRange},
};
use proptest::prelude::*;

/// A shipped policy that uses most of what there is.
const POLICY: &str = include_str!("../../policies/default.yaml");

/// What its readers promise to users.
fn pattern(definition: &str) -> regex::Regex {
    let schema = policy::schema();
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
    fn a_duration_is_read_as_it_was_written(millis in 0_u64..99_999 * 3_600_000) {
        let span = Span(Duration::from_millis(millis));
        prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
    }

    #[test]
    fn a_duration_is_taken_if_and_only_if_the_schema_says_so(text in "([0-9]{0,6}(h|m|s|ms|d| )){0,5}") {
        prop_assert_eq!(text.parse::<Span>().is_ok(), pattern("Duration").is_match(&text), "{}", text);
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0_u64..1_000_000, unit in 0_usize..7) {
        let (suffix, factor) = [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)][unit];
        prop_assert_eq!(format!("{number}{suffix}").parse::<Size>(), Ok(Size(number * factor)));
    }

    #[test]
    fn reading_a_quantity_never_panics(text in ".{0,12}") {
        // Only that it comes back matters.
        _ = (text.parse::<Span>(), text.parse::<Size>(), text.parse::<StatusRange>());
    }

    #[test]
    fn a_prefix_matches_by_element(prefix in "(/[ab]{1,2}){1,3}", path in "(/[ab]{0,2}){1,4}") {
        prop_assert_eq!(PathSpec::Prefix(prefix.clone()).matches(&path), is_prefix_by_elements(&prefix, &path), "{} {}", prefix, path);
    }

    /// A file that was cut, or into which something slipped, is read or refused; each fault has a place inside the file.
    #[test]
    fn a_damaged_file_is_refused_with_places_that_exist(at in 0.0_f64..1.0, cut in 0_usize..40, slip in "[a-z0-9:{}\\[\\]#&*!|>'\"% \n-]{0,6}") {
        let boundary = |index: usize| (0..=index.min(POLICY.len())).rev().find(|index| POLICY.is_char_boundary(*index)).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a short text")]
        let from = boundary((at * POLICY.len() as f64) as usize);
        let to = boundary(from + cut).max(from);
        let text = [&POLICY[..from], slip.as_str(), &POLICY[to..]].concat();
        let lines = text.lines().count();
        let source = Source::from_files(vec![File { name: "damaged.yaml".into(), text: text.clone() }]);
        if let Err(faults) = policy::load_source(&source, &HashMap::new()) {
            prop_assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                prop_assert!((1..=lines + 1).contains(&fault.place.line), "{}\n{}", fault.one_line(), text);
                prop_assert!(fault.place.column >= 1, "{}", fault.one_line());
                prop_assert!(!fault.message.is_empty());
            }
        }
    }
}
