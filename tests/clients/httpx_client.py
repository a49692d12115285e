"""httpx in HTTP/1.1, in HTTP/2 by prior knowledge, and in both over TLS.

Arguments: the plain address, the TLS address, the file of the authority, the name in the certificate's stead of the address.
"""

import ssl
import sys

import httpx

plain, secure, authority, name = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
port = secure.rsplit(":", 1)[1]


def use(client, base, version):
    answer = client.get(base + "/hello")
    assert (answer.status_code, answer.http_version, answer.text) == (200, version, "GET /hello "), (answer, answer.http_version, answer.text)
    body = b"x" * 300_000
    answer = client.post(base + "/echo", content=body)
    assert answer.text == "POST /echo " + body.decode(), len(answer.text)
    pieces = (b"piece %d;" % number for number in range(50))
    answer = client.post(base + "/echo", content=pieces)
    assert answer.text.endswith("piece 49;"), answer.text[-40:]
    assert client.head(base + "/hello").status_code == 200
    for number in range(50):
        assert client.get(f"{base}/{number}").text == f"GET /{number} "
    answer = client.get(base + "/nowhere/else")
    assert answer.status_code == 200


with httpx.Client() as client:
    use(client, "http://" + plain, "HTTP/1.1")
with httpx.Client(http1=False, http2=True) as client:
    use(client, "http://" + plain, "HTTP/2")
for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
    transport = httpx.HTTPTransport(verify=context, http2=http2)
    with httpx.Client(transport=transport) as client:
        use(client, f"https://{name}:{port}", version)
print("fine")
