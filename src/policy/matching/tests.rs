use crate::policy::matching::*;

fn rule(
    hostname: Option<&str>,
    path: &str,
    method: Option<&str>,
    headers: usize,
    route: usize,
) -> RouteRule {
    let hostname = hostname.map(|name| match name.strip_prefix('*') {
        Some(suffix) => HostnamePattern::Wildcard(suffix.to_owned()),
        None => HostnamePattern::Exact(name.to_owned()),
    });
    let path = match path.split_at_checked(1) {
        Some(("=", exact)) => PathMatchSpec::Exact(exact.to_owned()),
        Some(("~", regex)) => {
            PathMatchSpec::Regex(Regex::new(&format!("^(?:{regex})$")).expect("compiles"))
        }
        _ => PathMatchSpec::Prefix(path.to_owned()),
    };
    let headers = (0..headers)
        .map(|n| (format!("x-{n}"), HeaderValueSpec::Exact("1".to_owned())))
        .collect();
    RouteRule {
        hostname,
        request_match: RouteMatchSpec {
            path,
            method: method.map(str::to_owned),
            headers,
        },
        route,
    }
}

fn find_route(rules: &[RouteRule], host: &str, path: &str, method: &str) -> Option<usize> {
    let header = |name: &str| name.starts_with("x-").then_some("1");
    let request = RouteMatchInput {
        host,
        path,
        method,
        header: &header,
    };
    rules
        .iter()
        .find(|rule| rule.matches(&request))
        .map(|rule| rule.route)
}

#[test]
fn precedence_is_that_of_gateway_api() {
    let mut rules = vec![
        rule(None, "", None, 0, 0),
        rule(Some("*.shop"), "", None, 0, 1),
        rule(Some("*.eu.shop"), "", None, 0, 2),
        rule(Some("pay.shop"), "", None, 0, 3),
        rule(Some("pay.shop"), "~/v[0-9]+/.*", None, 0, 4),
        rule(Some("pay.shop"), "/v1", None, 0, 5),
        rule(Some("pay.shop"), "/v1/charges", None, 0, 6),
        rule(Some("pay.shop"), "=/v1/charges", None, 0, 7),
        rule(Some("pay.shop"), "/v1", Some("DELETE"), 0, 8),
        rule(Some("pay.shop"), "/v2", None, 0, 9),
        rule(Some("pay.shop"), "/v2", None, 2, 10),
    ];
    rules.sort_by_key(RouteRule::precedence);
    let table = [
        ("other", "/", "GET", 0),
        ("a.shop", "/", "GET", 1),
        ("A.EU.Shop", "/", "GET", 2),
        ("pay.shop", "/x", "GET", 3),
        ("pay.shop", "/v7/x", "GET", 4),
        ("pay.shop", "/v1", "GET", 5),
        ("pay.shop", "/v1/a", "DELETE", 8),
        ("pay.shop", "/v10", "GET", 3),
        ("pay.shop", "/v1/charges/9", "GET", 6),
        ("pay.shop", "/v1/charges", "GET", 7),
        ("pay.shop", "/v2/a", "GET", 10),
        ("shop", "/", "GET", 0),
    ];
    for (host, path, method, expected) in table {
        assert_eq!(
            find_route(&rules, host, path, method),
            Some(expected),
            "{method} {host}{path}"
        );
    }
}

#[test]
fn a_path_prefix_matches_whole_segments() {
    let prefix = PathMatchSpec::Prefix("/v1".to_owned());
    for (path, expected) in [
        ("/v1", true),
        ("/v1/", true),
        ("/v1/a", true),
        ("/v10", false),
        ("/v", false),
        ("/V1", false),
    ] {
        assert_eq!(prefix.matches(path), expected, "{path}");
    }
}
