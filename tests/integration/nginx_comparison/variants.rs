//! Changes of a request, and why nginx and the sidecar treat some of them differently.

use super::RawRequest;

/// Change of a request, and why the two proxies treat it differently; `None` if they do not.
pub(super) struct Variant {
    pub(super) text: &'static str,
    pub(super) apply: fn(&mut RawRequest),
    pub(super) difference: Option<&'static str>,
}

const fn same(text: &'static str, apply: fn(&mut RawRequest)) -> Variant {
    Variant {
        text,
        apply,
        difference: None,
    }
}

const fn differs(text: &'static str, why: &'static str, apply: fn(&mut RawRequest)) -> Variant {
    Variant {
        text,
        apply,
        difference: Some(why),
    }
}

/// All changes.
pub(super) const VARIANTS: &[Variant] = &[
    same("POST with a length", |request| {
        request.post(&["Content-Length: 5"], "hello");
    }),
    same("POST in chunks", |request| {
        request.post(
            &["Transfer-Encoding: chunked"],
            "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        );
    }),
    same("DELETE", |request| request.method = "DELETE"),
    same("PATCH", |request| request.method = "PATCH"),
    same("an unknown method", |request| request.method = "BREW"),
    same("a method with a hyphen", |request| {
        request.method = "M-SEARCH"
    }),
    differs(
        "a method in lower case",
        "nginx accepts only capitals; RFC 9110 section 9.1 permits any token",
        |request| request.method = "get",
    ),
    same("a method that is no token", |request| {
        request.method = "G@T"
    }),
    differs(
        "TRACE",
        "nginx rejects TRACE itself; the app decides here",
        |request| request.method = "TRACE",
    ),
    same("CONNECT", |request| {
        request.method = "CONNECT";
        request.target = "shop:80";
    }),
    same("OPTIONS *", |request| {
        request.method = "OPTIONS";
        request.target = "*";
    }),
    same("a target with escapes", |request| {
        request.target = "/%41%2f%2E?%00"
    }),
    differs(
        "a target with an incomplete escape",
        "nginx decodes the path to find its location; the app decides here",
        |request| request.target = "/a%2",
    ),
    differs(
        "a target with an escaped NUL",
        "nginx decodes the path to find its location; the app decides here",
        |request| request.target = "/a%00b",
    ),
    same("a target with two slashes", |request| {
        request.target = "//a//b"
    }),
    same("a target with dots", |request| {
        request.target = "/a/../b/./c"
    }),
    differs(
        "a target with dots above the root",
        "nginx resolves dots to find its location; the app decides here",
        |request| request.target = "/../a",
    ),
    same("a target with other characters", |request| {
        request.target = "/\"<>\\^`{|}"
    }),
    same("a target that is not ASCII", |request| {
        request.target = "/\u{fc}"
    }),
    differs(
        "a target with a fragment",
        "a fragment is never sent (RFC 3986 section 3.5)",
        |request| request.target = "/a#b",
    ),
    same("a target with a tab", |request| request.target = "/a\tb"),
    same("a target with a space", |request| request.target = "/a b"),
    same("a target with DEL", |request| request.target = "/a\u{7f}b"),
    same("a target without a slash", |request| request.target = "a"),
    same("an absolute target", |request| {
        request.target = "http://shop/a"
    }),
    differs(
        "an absolute target with a port",
        "Host is the authority of the target (RFC 9112 section 3.2.2); nginx normalizes it",
        |request| request.target = "http://Shop:80/a",
    ),
    differs(
        "an absolute target of another host",
        "two hosts are ambiguous; nginx forwards the Host field",
        |request| request.target = "http://other/a",
    ),
    differs(
        "an absolute target with another scheme",
        "nginx ignores the scheme",
        |request| request.target = "ftp://shop/a",
    ),
    same("an absolute target with a user", |request| {
        request.target = "http://u@shop/a"
    }),
    same("HTTP/1.0", |request| request.version = "HTTP/1.0"),
    differs(
        "HTTP/1.2",
        "nginx accepts any minor version; no such version exists",
        |request| request.version = "HTTP/1.2",
    ),
    same("HTTP/2.0", |request| request.version = "HTTP/2.0"),
    same("a version in lower case", |request| {
        request.version = "http/1.1"
    }),
    same("no Host", |request| request.lines.clear()),
    same("two Hosts", |request| request.lines.push("Host: shop")),
    same("an empty Host", |request| request.lines = vec!["Host:"]),
    same("a Host with a port", |request| {
        request.lines = vec!["Host: shop:8080"]
    }),
    differs(
        "a Host with an invalid port",
        "nginx does not check the port",
        |request| request.lines = vec!["Host: shop:99999"],
    ),
    same("a Host with a path", |request| {
        request.lines = vec!["Host: shop/a"]
    }),
    differs(
        "a Host with a user",
        "RFC 9110 section 7.2 permits no user",
        |request| request.lines = vec!["Host: u@shop"],
    ),
    same("a Host with a space", |request| {
        request.lines = vec!["Host: a b"]
    }),
    same("an IPv6 Host", |request| {
        request.lines = vec!["Host: [::1]:80"]
    }),
    differs(
        "an invalid IPv6 Host",
        "nginx does not check an address without its end",
        |request| request.lines = vec!["Host: [::1"],
    ),
    same("a name with an underscore", |request| {
        request.lines.push("X_Test: 1")
    }),
    same("a name with other characters", |request| {
        request.lines.push("X-Test!#$%&'*+.^`|~: 1")
    }),
    differs(
        "a name with a quote",
        "a quote is no token (RFC 9110 section 5.1)",
        |request| request.lines.push("X-Test\": 1"),
    ),
    same("a name with a space before the colon", |request| {
        request.lines.push("X-Test : 1")
    }),
    same("an empty name", |request| request.lines.push(": 1")),
    differs(
        "a line without a colon",
        "nginx adds the colon; a field has one (RFC 9112 section 5)",
        |request| request.lines.push("X-Test"),
    ),
    same("a folded line", |request| {
        request.lines.push("X-Test: 1\r\n 2")
    }),
    same("a line that starts with a space", |request| {
        request.lines.push(" X-Test: 1")
    }),
    same("an empty value", |request| request.lines.push("X-Test:")),
    differs(
        "blanks around a value",
        "RFC 9112 section 5.1 excludes tabs around a value; nginx excludes only spaces",
        |request| request.lines.push("X-Test: \t a  b \t"),
    ),
    same("a value that is not ASCII", |request| {
        request.lines.push("X-Test: \u{fc}")
    }),
    same("a value with NUL", |request| {
        request.lines.push("X-Test: a\0b")
    }),
    differs(
        "a value with a control character",
        "RFC 9110 section 5.5 permits none",
        |request| request.lines.push("X-Test: a\u{1}b"),
    ),
    same("a value with CR", |request| {
        request.lines.push("X-Test: a\rb")
    }),
    same("the same name twice", |request| {
        request.lines.extend(["X-Test: 1", "x-test: 2"])
    }),
    differs(
        "a nominated field",
        "RFC 9110 section 7.6.1 removes it; nginx does not look at the names",
        |request| request.lines.extend(["Connection: x-test", "X-Test: 1"]),
    ),
    differs(
        "lines that end with LF",
        "two proxies must not disagree about where a line ends",
        |request| request.line_end = "\n",
    ),
    same("two lengths that are equal", |request| {
        request.post(&["Content-Length: 5", "Content-Length: 5"], "hello");
    }),
    same("two lengths that differ", |request| {
        request.post(&["Content-Length: 5", "Content-Length: 4"], "hello");
    }),
    same("a length with a sign", |request| {
        request.post(&["Content-Length: +5"], "hello");
    }),
    same("a length with zeros", |request| {
        request.post(&["Content-Length: 005"], "hello");
    }),
    same("a list of lengths", |request| {
        request.post(&["Content-Length: 5, 5"], "hello");
    }),
    same("an empty length", |request| {
        request.method = "POST";
        request.lines.push("Content-Length:");
    }),
    same("a length and chunks", |request| {
        request.post(
            &["Content-Length: 5", "Transfer-Encoding: chunked"],
            "0\r\n\r\n",
        );
    }),
    same("another coding", |request| {
        request.post(&["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n");
    }),
    same("chunked in capitals", |request| {
        request.post(&["Transfer-Encoding: Chunked"], "0\r\n\r\n");
    }),
    differs(
        "chunked with a tab before it",
        "nginx compares the value with its tab",
        |request| {
            request.post(&["Transfer-Encoding: \tchunked"], "0\r\n\r\n");
        },
    ),
    same("chunked twice", |request| {
        request.post(
            &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            "0\r\n\r\n",
        );
    }),
    same("chunks in HTTP/1.0", |request| {
        request.method = "POST";
        request.version = "HTTP/1.0";
        request.lines.push("Transfer-Encoding: chunked");
        request.body = "0\r\n\r\n";
    }),
    same("a chunk with an extension", |request| {
        request.post(
            &["Transfer-Encoding: chunked"],
            "5;a=b\r\nhello\r\n0\r\n\r\n",
        );
    }),
    differs(
        "a chunk size with a blank",
        "two proxies must not disagree about where a chunk starts",
        |request| {
            request.post(&["Transfer-Encoding: chunked"], "5 \r\nhello\r\n0\r\n\r\n");
        },
    ),
    same("a chunk size with a prefix", |request| {
        request.post(&["Transfer-Encoding: chunked"], "0x5\r\nhello\r\n0\r\n\r\n");
    }),
    differs(
        "chunk lines that end with LF",
        "two proxies must not disagree about where a line ends",
        |request| {
            request.post(&["Transfer-Encoding: chunked"], "5\nhello\n0\n\n");
        },
    ),
    same("a chunk extension with LF", |request| {
        request.post(
            &["Transfer-Encoding: chunked"],
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
        );
    }),
    differs(
        "trailers",
        "nginx removes TE and drops trailers",
        |request| {
            request.post(
                &["Transfer-Encoding: chunked", "TE: trailers"],
                "0\r\nX-Test: 1\r\n\r\n",
            );
        },
    ),
    differs(
        "invalid trailers",
        "nginx does not read trailers",
        |request| {
            request.post(&["Transfer-Encoding: chunked"], "0\r\nX Test\r\n\r\n");
        },
    ),
    same("a body without a length", |request| {
        request.method = "POST";
        request.body = "hello";
    }),
    same("a second request in the body", |request| {
        request.body = "GET /second HTTP/1.1\r\nHost: shop\r\n\r\n";
    }),
];
