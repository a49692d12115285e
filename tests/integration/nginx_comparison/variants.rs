//! Changes of a request, and why nginx and the sidecar treat some of them differently.

use super::Edit::{self, Add, Body, Chunked, LineEnd, Lines, Method, Post, Target, Version};

/// Change of a request, and why the two proxies treat it differently; `None` if they do not.
pub(super) struct Variant {
    pub(super) text: &'static str,
    pub(super) edits: &'static [Edit],
    pub(super) difference: Option<&'static str>,
}

const fn same(text: &'static str, edits: &'static [Edit]) -> Variant {
    Variant {
        text,
        edits,
        difference: None,
    }
}

const fn differs(text: &'static str, why: &'static str, edits: &'static [Edit]) -> Variant {
    Variant {
        text,
        edits,
        difference: Some(why),
    }
}

/// Changes that the test applies alone and in pairs.
pub(super) const VARIANTS: &[Variant] = &[
    same(
        "POST with a length",
        &[Post(&["Content-Length: 5"], "hello")],
    ),
    same(
        "POST in chunks",
        &[Chunked("3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")],
    ),
    same("DELETE", &[Method("DELETE")]),
    same("PATCH", &[Method("PATCH")]),
    same("an unknown method", &[Method("BREW")]),
    same("a method with a hyphen", &[Method("M-SEARCH")]),
    differs(
        "a method in lower case",
        "nginx accepts only capitals; RFC 9110 section 9.1 permits any token",
        &[Method("get")],
    ),
    same("a method that is no token", &[Method("G@T")]),
    differs(
        "TRACE",
        "nginx rejects TRACE itself; the app decides here",
        &[Method("TRACE")],
    ),
    same("CONNECT", &[Method("CONNECT"), Target("shop:80")]),
    same("OPTIONS *", &[Method("OPTIONS"), Target("*")]),
    same("a target with escapes", &[Target("/%41%2f%2E?%00")]),
    differs(
        "a target with an incomplete escape",
        "nginx decodes the path to find its location; the app decides here",
        &[Target("/a%2")],
    ),
    differs(
        "a target with an escaped NUL",
        "nginx decodes the path to find its location; the app decides here",
        &[Target("/a%00b")],
    ),
    same("a target with two slashes", &[Target("//a//b")]),
    same("a target with dots", &[Target("/a/../b/./c")]),
    differs(
        "a target with dots above the root",
        "nginx resolves dots to find its location; the app decides here",
        &[Target("/../a")],
    ),
    same("a target with other characters", &[Target("/\"<>\\^`{|}")]),
    same("a target that is not ASCII", &[Target("/\u{fc}")]),
    differs(
        "a target with a fragment",
        "a fragment is never sent (RFC 3986 section 3.5)",
        &[Target("/a#b")],
    ),
    same("a target with a tab", &[Target("/a\tb")]),
    same("a target with a space", &[Target("/a b")]),
    same("a target with DEL", &[Target("/a\u{7f}b")]),
    same("a target without a slash", &[Target("a")]),
    same("an absolute target", &[Target("http://shop/a")]),
    differs(
        "an absolute target with a port",
        "Host is the authority of the target (RFC 9112 section 3.2.2); nginx normalizes it",
        &[Target("http://Shop:80/a")],
    ),
    differs(
        "an absolute target of another host",
        "two hosts are ambiguous; nginx forwards the Host field",
        &[Target("http://other/a")],
    ),
    differs(
        "an absolute target with another scheme",
        "nginx ignores the scheme",
        &[Target("ftp://shop/a")],
    ),
    same(
        "an absolute target with a user",
        &[Target("http://u@shop/a")],
    ),
    same("HTTP/1.0", &[Version("HTTP/1.0")]),
    differs(
        "HTTP/1.2",
        "nginx accepts any minor version; no such version exists",
        &[Version("HTTP/1.2")],
    ),
    same("HTTP/2.0", &[Version("HTTP/2.0")]),
    same("a version in lower case", &[Version("http/1.1")]),
    same("no Host", &[Lines(&[])]),
    same("two Hosts", &[Add(&["Host: shop"])]),
    same("an empty Host", &[Lines(&["Host:"])]),
    same("a Host with a port", &[Lines(&["Host: shop:8080"])]),
    differs(
        "a Host with an invalid port",
        "nginx does not check the port",
        &[Lines(&["Host: shop:99999"])],
    ),
    same("a Host with a path", &[Lines(&["Host: shop/a"])]),
    differs(
        "a Host with a user",
        "RFC 9110 section 7.2 permits no user",
        &[Lines(&["Host: u@shop"])],
    ),
    same("a Host with a space", &[Lines(&["Host: a b"])]),
    same("an IPv6 Host", &[Lines(&["Host: [::1]:80"])]),
    differs(
        "an invalid IPv6 Host",
        "nginx does not check an address without its end",
        &[Lines(&["Host: [::1"])],
    ),
    same("a name with an underscore", &[Add(&["X_Test: 1"])]),
    same(
        "a name with other characters",
        &[Add(&["X-Test!#$%&'*+.^`|~: 1"])],
    ),
    differs(
        "a name with a quote",
        "a quote is no token (RFC 9110 section 5.1)",
        &[Add(&["X-Test\": 1"])],
    ),
    same(
        "a name with a space before the colon",
        &[Add(&["X-Test : 1"])],
    ),
    same("an empty name", &[Add(&[": 1"])]),
    differs(
        "a line without a colon",
        "nginx adds the colon; a field has one (RFC 9112 section 5)",
        &[Add(&["X-Test"])],
    ),
    same("a folded line", &[Add(&["X-Test: 1\r\n 2"])]),
    same("a line that starts with a space", &[Add(&[" X-Test: 1"])]),
    same("an empty value", &[Add(&["X-Test:"])]),
    differs(
        "blanks around a value",
        "RFC 9112 section 5.1 excludes tabs around a value; nginx excludes only spaces",
        &[Add(&["X-Test: \t a  b \t"])],
    ),
    same("a value that is not ASCII", &[Add(&["X-Test: \u{fc}"])]),
    same("a value with NUL", &[Add(&["X-Test: a\0b"])]),
    differs(
        "a value with a control character",
        "RFC 9110 section 5.5 permits none",
        &[Add(&["X-Test: a\u{1}b"])],
    ),
    same("a value with CR", &[Add(&["X-Test: a\rb"])]),
    same("the same name twice", &[Add(&["X-Test: 1", "x-test: 2"])]),
    differs(
        "a nominated field",
        "RFC 9110 section 7.6.1 removes it; nginx does not look at the names",
        &[Add(&["Connection: x-test", "X-Test: 1"])],
    ),
    differs(
        "lines that end with LF",
        "two proxies must not disagree about where a line ends",
        &[LineEnd("\n")],
    ),
    same(
        "two lengths that are equal",
        &[Post(&["Content-Length: 5", "Content-Length: 5"], "hello")],
    ),
    same(
        "two lengths that differ",
        &[Post(&["Content-Length: 5", "Content-Length: 4"], "hello")],
    ),
    same(
        "a length with a sign",
        &[Post(&["Content-Length: +5"], "hello")],
    ),
    same(
        "a length with zeros",
        &[Post(&["Content-Length: 005"], "hello")],
    ),
    same(
        "a list of lengths",
        &[Post(&["Content-Length: 5, 5"], "hello")],
    ),
    same(
        "an empty length",
        &[Method("POST"), Add(&["Content-Length:"])],
    ),
    same(
        "a length and chunks",
        &[Post(
            &["Content-Length: 5", "Transfer-Encoding: chunked"],
            "0\r\n\r\n",
        )],
    ),
    same(
        "another coding",
        &[Post(&["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n")],
    ),
    same(
        "chunked in capitals",
        &[Post(&["Transfer-Encoding: Chunked"], "0\r\n\r\n")],
    ),
    differs(
        "chunked with a tab before it",
        "nginx compares the value with its tab",
        &[Post(&["Transfer-Encoding: \tchunked"], "0\r\n\r\n")],
    ),
    same(
        "chunked twice",
        &[Post(
            &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            "0\r\n\r\n",
        )],
    ),
    same(
        "chunks in HTTP/1.0",
        &[
            Method("POST"),
            Version("HTTP/1.0"),
            Add(&["Transfer-Encoding: chunked"]),
            Body("0\r\n\r\n"),
        ],
    ),
    same(
        "a chunk with an extension",
        &[Chunked("5;a=b\r\nhello\r\n0\r\n\r\n")],
    ),
    differs(
        "a chunk size with a blank",
        "two proxies must not disagree about where a chunk starts",
        &[Chunked("5 \r\nhello\r\n0\r\n\r\n")],
    ),
    same(
        "a chunk size with a prefix",
        &[Chunked("0x5\r\nhello\r\n0\r\n\r\n")],
    ),
    differs(
        "chunk lines that end with LF",
        "two proxies must not disagree about where a line ends",
        &[Chunked("5\nhello\n0\n\n")],
    ),
    same(
        "a chunk extension with LF",
        &[Chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")],
    ),
    differs(
        "trailers",
        "nginx removes TE and drops trailers",
        &[Post(
            &["Transfer-Encoding: chunked", "TE: trailers"],
            "0\r\nX-Test: 1\r\n\r\n",
        )],
    ),
    differs(
        "invalid trailers",
        "nginx does not read trailers",
        &[Chunked("0\r\nX Test\r\n\r\n")],
    ),
    same("a body without a length", &[Method("POST"), Body("hello")]),
    same(
        "a second request in the body",
        &[Body("GET /second HTTP/1.1\r\nHost: shop\r\n\r\n")],
    ),
];
