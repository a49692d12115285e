"""A grpcio client that calls the grpcio server through the sidecar at the given address."""

import sys
from concurrent import futures

import grpc

address = sys.argv[1]
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
channel = grpc.insecure_channel(address, options=options)
call = lambda kind, name: kind(f"/shop.Test/{name}", request_serializer=None, response_deserializer=None)
echo = call(channel.unary_unary, "Echo")

response, details = echo.with_call(b"hello", metadata=(("x-who", "me"),), timeout=10)
assert response == b"hello", response
assert ("x-seen", "me") in [tuple(pair) for pair in details.trailing_metadata()], details.trailing_metadata()

large = bytes(range(256)) * 12_000  # 3 MB
assert echo(large, timeout=30) == large

try:
    call(channel.unary_unary, "Fail")(b"", timeout=10)
    raise SystemExit("Fail succeeded")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error.code()
    assert error.details() == "not now, é", error.details()

try:
    call(channel.unary_unary, "Slow")(b"", timeout=0.2)
    raise SystemExit("Slow responded before its deadline")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code()

try:
    call(channel.unary_unary, "Nothing")(b"", timeout=10)
    raise SystemExit("Nothing is not an unknown method")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code()

assert [int(number) for number in call(channel.unary_stream, "Count")(b"500", timeout=10)] == list(range(500))
words = [b"one", b"two", b"three"]
assert list(call(channel.stream_stream, "Talk")(iter(words), timeout=10)) == [word.upper() for word in words]

stream = call(channel.unary_stream, "Count")(b"100000000", timeout=30)
next(stream)
stream.cancel()

with futures.ThreadPoolExecutor(16) as pool:
    assert list(pool.map(lambda number: echo(str(number).encode(), timeout=10), range(400))) == [str(number).encode() for number in range(400)]
print("fine")
