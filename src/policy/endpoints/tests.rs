use crate::policy::endpoints::*;

fn addresses(text: &str) -> Result<Vec<String>, String> {
    let parsed = parse(&Arc::from("e.yaml"), text);
    parsed
        .map(|specs| specs.iter().map(|spec| spec.address.to_string()).collect())
        .map_err(|diagnostics| diagnostics.to_string())
}

#[test]
fn an_endpoints_file_is_a_list_or_a_mapping_in_yaml_or_json() {
    let both = Ok(vec![
        "10.0.0.1:80".to_owned(),
        "unix:/run/app.sock".to_owned(),
    ]);
    for text in [
        "- 10.0.0.1:80\n- unix:/run/app.sock\n",
        concat!(
            "endpoints:\n",
            "  - {address: '10.0.0.1:80', weight: 2, zone: a, priority: 1}\n",
            "  - unix:/run/app.sock\n",
        ),
        r#"["10.0.0.1:80", {"address": "unix:/run/app.sock"}]"#,
        r#"{"endpoints": ["10.0.0.1:80", "unix:/run/app.sock"]}"#,
    ] {
        assert_eq!(addresses(text), both, "{text}");
    }
    assert_eq!(addresses("[]"), Ok(Vec::new()));
}

#[test]
fn an_invalid_endpoints_file_is_rejected_with_positions() {
    let table = [
        ("", "there must be one document"),
        ("[\"10.0.0.1:80\", ", "neither YAML nor JSON"),
        (
            "- 10.0.0.1:80\n- nonsense\n",
            "e.yaml:2:3: `nonsense` is not an endpoint",
        ),
        ("- 10.0.0.1:80\n- 10.0.0.1:80\n", "given twice"),
        (
            "- {address: '10.0.0.1:80', weight: 0}\n",
            "with weight 0 would never be selected",
        ),
        ("- {adress: '10.0.0.1:80'}\n", "unknown key `adress`"),
        ("endpoint: []\n", "unknown key `endpoint`"),
        ("just text", "is not a list"),
        ("- unix:relative.sock\n", "is not an endpoint"),
    ];
    for (text, expected) in table {
        let diagnostics = addresses(text).expect_err(text);
        assert!(diagnostics.contains(expected), "{text:?}: {diagnostics}");
    }
}

#[test]
fn dns_names_are_distinguished_from_addresses() {
    for (text, expected) in [
        ("pay.shop.svc.cluster.local.", true),
        ("_http._tcp.pay", true),
        ("localhost", true),
        ("10.0.0.1", false),
        ("", false),
        (".", false),
        ("a..b", false),
        ("-a", false),
        ("pay shop", false),
        ("http://pay", false),
    ] {
        assert_eq!(is_dns_name(text), expected, "{text}");
    }
}
