use proptest::prelude::*;
use regex::Regex;

use crate::policy::matching::{RouteMatchSpec, route_table::*};

fn hostname() -> impl Strategy<Value = Option<HostnamePattern>> {
    prop_oneof![
        Just(None),
        "(A|b)(\\.(a|b)){0,2}".prop_map(|name| Some(HostnamePattern::Exact(name))),
        "(\\.(a|B)){1,3}".prop_map(|suffix| Some(HostnamePattern::Wildcard(suffix))),
    ]
}

fn path() -> impl Strategy<Value = PathMatchSpec> {
    prop_oneof![
        "(/[ab]?){1,3}".prop_map(PathMatchSpec::Exact),
        "(/[ab]){0,3}".prop_map(PathMatchSpec::Prefix),
        "(/[ab]){1,2}".prop_map(|text| {
            PathMatchSpec::Regex(Regex::new(&format!("^(?:{text}.*)$")).expect("it compiles"))
        }),
    ]
}

fn rules() -> impl Strategy<Value = Vec<RouteRule>> {
    let method = prop_oneof![Just(None), Just(Some("GET".to_owned()))];
    let rule = (hostname(), path(), method).prop_map(|(hostname, path, method)| RouteRule {
        hostname,
        request_match: RouteMatchSpec {
            path,
            method,
            headers: Vec::new(),
        },
        route: 0,
    });
    prop::collection::vec(rule, 0..40).prop_map(|mut rules| {
        rules.sort_by_key(RouteRule::precedence);
        for (number, rule) in rules.iter_mut().enumerate() {
            rule.route = number;
        }
        rules
    })
}

proptest! {
    #[test]
    fn the_index_finds_the_first_rule_that_matches(
        rules in rules(),
        host in "((a|B)\\.?){0,4}",
        path in "(\\*|(/[ab]{0,2}){0,5})",
        method in "(GET|PUT)",
    ) {
        let request = RouteMatchInput {
            host: &host,
            path: &path,
            method: &method,
            header: &|_| None,
        };
        let expected = rules.iter().find(|rule| rule.matches(&request)).map(|rule| rule.route);
        let table = RouteTable::new(rules.clone());
        prop_assert_eq!(table.find(&request).map(|rule| rule.route), expected);
    }
}
