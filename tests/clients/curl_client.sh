#!/bin/sh
# curl in every version of HTTP. Arguments: the plain address, the TLS address, the file of the authority, the name in the certificate.
set -eu
plain=$1 secure=$2 authority=$3 name=$4
port=${secure##*:}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 300000 /dev/zero | tr '\0' x >"$work/body"
{ printf 'POST /echo '; cat "$work/body"; } >"$work/expected"
ask() { curl --silent --show-error --fail --max-time 20 --noproxy '*' "$@"; }
check() { [ "$1" = "$2" ] || { echo "expected '$2', got '$1': $3" >&2; exit 1; }; }

use() {
    what=$1 base=$2 version=$3
    shift 3
    check "$(ask "$@" -o /dev/null -w '%{http_version} %{http_code}' "$base/hello")" "$version 200" "$what"
    check "$(ask "$@" "$base/hello")" "GET /hello " "$what"
    ask "$@" --data-binary "@$work/body" "$base/echo" >"$work/answer"
    cmp "$work/answer" "$work/expected"
    # With an announcement that is waited for, and in chunks or without a length.
    ask "$@" -H 'expect: 100-continue' --data-binary "@$work/body" "$base/echo" >"$work/answer"
    cmp "$work/answer" "$work/expected"
    [ "$what" = HTTP/1.0 ] || { ask "$@" -X POST -T - "$base/echo" <"$work/body" >"$work/answer"; cmp "$work/answer" "$work/expected"; }
    check "$(ask "$@" -I -o /dev/null -w '%{http_code}' "$base/hello")" 200 "$what HEAD"
    # Before 8.0, curl itself sends nothing on a connection of prior knowledge that it uses again (its changelog of 8.0.0).
    case $what in *knowledge) return ;; esac
    check "$(ask "$@" "$base/1" "$base/2" "$base/3")" "GET /1 GET /2 GET /3 " "$what, three on one connection"
}

# The answer names the version of the server (RFC 9110 section 2.5).
use HTTP/1.0 "http://$plain" 1.1 --http1.0
use "HTTP/1.1" "http://$plain" 1.1 --http1.1
use "HTTP/2 by prior knowledge" "http://$plain" 2 --http2-prior-knowledge
# Asking for HTTP/2 by an upgrade gets an answer in HTTP/1.1.
check "$(ask --http2 "http://$plain/hello")" "GET /hello " "an upgrade that is not taken"
use "HTTP/1.1 over TLS" "https://$name:$port" 1.1 --http1.1 --cacert "$authority" --resolve "$name:$port:127.0.0.1"
use "HTTP/2 over TLS" "https://$name:$port" 2 --http2 --cacert "$authority" --resolve "$name:$port:127.0.0.1"
echo fine
