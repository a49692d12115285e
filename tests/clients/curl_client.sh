#!/bin/sh
# Sends requests with curl in each HTTP version. Arguments: plain address, TLS address, CA file, host name for TLS.
set -eu
plain=$1 secure=$2 ca_file=$3 name=$4
port=${secure##*:}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 300000 /dev/zero | tr '\0' x >"$work/body"
{ printf 'POST /echo '; cat "$work/body"; } >"$work/expected"
request() { curl --silent --show-error --fail --max-time 20 --noproxy '*' "$@"; }
check() { [ "$1" = "$2" ] || { echo "expected '$2', got '$1': $3" >&2; exit 1; }; }

use() {
    what=$1 base=$2 version=$3
    shift 3
    check "$(request "$@" -o /dev/null -w '%{http_version} %{http_code}' "$base/hello")" "$version 200" "$what"
    check "$(request "$@" "$base/hello")" "GET /hello " "$what"
    request "$@" --data-binary "@$work/body" "$base/echo" >"$work/response"
    cmp "$work/response" "$work/expected"
    # With `expect: 100-continue`, and then with a body of unknown length.
    request "$@" -H 'expect: 100-continue' --data-binary "@$work/body" "$base/echo" >"$work/response"
    cmp "$work/response" "$work/expected"
    [ "$what" = HTTP/1.0 ] || { request "$@" -X POST -T - "$base/echo" <"$work/body" >"$work/response"; cmp "$work/response" "$work/expected"; }
    check "$(request "$@" -I -o /dev/null -w '%{http_code}' "$base/hello")" 200 "$what HEAD"
    # Before version 8.0.0, curl sends nothing on a reused connection with prior knowledge (curl's changelog of 8.0.0).
    case $what in *knowledge) return ;; esac
    check "$(request "$@" "$base/1" "$base/2" "$base/3")" "GET /1 GET /2 GET /3 " "$what, three on one connection"
}

# The version in a response is that of the server, not of the request (RFC 9110 section 2.5).
use HTTP/1.0 "http://$plain" 1.1 --http1.0
use "HTTP/1.1" "http://$plain" 1.1 --http1.1
use "HTTP/2 by prior knowledge" "http://$plain" 2 --http2-prior-knowledge
# A request to upgrade to HTTP/2 receives a response in HTTP/1.1.
check "$(request --http2 "http://$plain/hello")" "GET /hello " "an ignored upgrade"
use "HTTP/1.1 over TLS" "https://$name:$port" 1.1 --http1.1 --cacert "$ca_file" --resolve "$name:$port:127.0.0.1"
use "HTTP/2 over TLS" "https://$name:$port" 2 --http2 --cacert "$ca_file" --resolve "$name:$port:127.0.0.1"
echo fine
