//! The first rule that matches a request has the highest precedence of all that match, and matching
//! does not panic.
#![no_main]

use std::{collections::HashMap, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use outrigger::policy::{
    self, matching::RouteMatchInput, snapshot::PolicySnapshot, source::PolicySource,
};

const POLICY: &str = r#"
apiVersion: outrigger.dev/v1alpha1
kind: ResiliencePolicy
metadata: {name: fuzz}
spec:
  listeners: [{name: in, direction: Inbound, address: "127.0.0.1:0"}]
  backends: [{name: app, endpoints: ["127.0.0.1:1"]}]
  routes:
    - {name: any, listeners: [in], backendRefs: [{name: app}]}
    - {name: host, listeners: [in], hostnames: [pay.shop], backendRefs: [{name: app}]}
    - name: wild
      listeners: [in]
      hostnames: ["*.shop"]
      matches: [{path: {value: /v1}}]
      backendRefs: [{name: app}]
    - name: exact
      listeners: [in]
      matches: [{path: {type: Exact, value: /v1/charges}}]
      backendRefs: [{name: app}]
    - name: prefix
      listeners: [in]
      matches: [{path: {value: /v1/charges}, method: POST}]
      backendRefs: [{name: app}]
    - name: regex
      listeners: [in]
      matches: [{path: {type: RegularExpression, value: "/v[0-9]+/.*"}}]
      backendRefs: [{name: app}]
    - name: header
      listeners: [in]
      matches: [{headers: [{name: x-a, value: b}]}]
      backendRefs: [{name: app}]
"#;

static SNAPSHOT: LazyLock<PolicySnapshot> = LazyLock::new(|| {
    let source = PolicySource::from_text("f.yaml", POLICY.to_owned());
    policy::load_source(&source, &HashMap::new())
        .expect("the policy is valid")
        .snapshot
});

fuzz_target!(|parts: (&str, &str, &str, &str)| {
    let (host, path, method, header) = parts;
    // Routes match request targets in origin form.
    let path = &*format!("/{path}");
    let find_header = |name: &str| (name == "x-a").then_some(header);
    let request = RouteMatchInput {
        host,
        path,
        method,
        header: &find_header,
    };
    let table = &SNAPSHOT.route_tables[0];
    let rules = table.rules();
    let first = rules
        .iter()
        .position(|rule| rule.matches(&request))
        .expect("the route `any` matches every request");
    let found = table
        .find(&request)
        .expect("the index finds what the scan finds");
    assert!(std::ptr::eq(found, &rules[first]));
    // No rule before it matches, and no rule after it is more specific.
    for (index, rule) in rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.matches(&request))
    {
        assert!(index >= first && rule.precedence() >= rules[first].precedence());
    }
});
