use super::*;

#[test]
fn a_host_is_a_name_or_an_address_with_an_optional_port() {
    let valid = [
        "a",
        "shop.test",
        "Shop.TEST.",
        "a-b_c~d",
        "xn--bcher-kva.example",
        "a%2Fb",
        "a!$&'()*+,;=b",
        "10.0.0.1",
        "10.0.0.1:8080",
        "a:0",
        "a:00080",
        "a:65535",
        "[::1]",
        "[::1]:443",
        "[2001:db8::1]",
        "[::ffff:10.0.0.1]",
    ];
    for text in valid {
        assert!(is_valid(text), "{text}");
    }
}

#[test]
fn anything_else_is_no_host() {
    let invalid = [
        "",
        ":80",
        "a:",
        "a:65536",
        "a:+80",
        "a:-1",
        "a:80a",
        "a:80:80",
        "a b",
        "a\tb",
        "a/b",
        "a?b",
        "a#b",
        "a\\b",
        "a@b",
        "user:password@a",
        "a%2",
        "a%zz",
        "a\"b",
        "a<b>",
        "a|b",
        "a^b",
        "a`b",
        "a{b}",
        "b\u{fc}cher",
        "::1",
        "[::1",
        "[::1]443",
        "[::1]:",
        "[::1%25eth0]",
        "[v1.a]",
        "[10.0.0.1]",
        "[]",
        "a]",
    ];
    for text in invalid {
        assert!(!is_valid(text), "{text}");
    }
}

#[test]
fn hosts_are_equal_without_regard_to_case_and_default_port() {
    let table = [
        ("a", "a", "http", true),
        ("Shop:80", "shop", "http", true),
        ("shop", "SHOP:80", "http", true),
        ("shop:443", "shop", "https", true),
        ("shop:443", "shop", "http", false),
        ("shop:8080", "shop", "http", false),
        ("a", "b", "http", false),
        ("[::1]:80", "[::1]", "http", true),
    ];
    for (first, second, scheme, expected) in table {
        assert_eq!(
            are_equal(first, second, scheme),
            expected,
            "{first} {second} {scheme}"
        );
    }
}
