"""Sends requests with httpx in HTTP/1.1, in HTTP/2 with prior knowledge, and in both over TLS.

Arguments: plain address, TLS address, CA file, host name for TLS.
"""

import ssl
import sys

import httpx

plain, secure, ca_file, name = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
port = secure.rsplit(":", 1)[1]


def use(client, base, version):
    response = client.get(base + "/hello")
    assert (response.status_code, response.http_version, response.text) == (200, version, "GET /hello "), (response, response.http_version, response.text)
    body = b"x" * 300_000
    response = client.post(base + "/echo", content=body)
    assert response.text == "POST /echo " + body.decode(), len(response.text)
    pieces = (b"piece %d;" % number for number in range(50))
    response = client.post(base + "/echo", content=pieces)
    assert response.text.endswith("piece 49;"), response.text[-40:]
    assert client.head(base + "/hello").status_code == 200
    for number in range(50):
        assert client.get(f"{base}/{number}").text == f"GET /{number} "
    response = client.get(base + "/nowhere/else")
    assert response.status_code == 200


with httpx.Client() as client:
    use(client, "http://" + plain, "HTTP/1.1")
with httpx.Client(http1=False, http2=True) as client:
    use(client, "http://" + plain, "HTTP/2")
for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
    transport = httpx.HTTPTransport(verify=context, http2=http2)
    with httpx.Client(transport=transport) as client:
        use(client, f"https://{name}:{port}", version)
print("fine")
