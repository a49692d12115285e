"""A grpcio server that prints its port and serves until its standard input ends."""

import sys
import time
from concurrent import futures

import grpc


def echo(request, context):
    context.set_trailing_metadata((("x-seen", dict(context.invocation_metadata()).get("x-who", "")),))
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now, é")


def slow(request, context):
    while context.is_active():
        time.sleep(0.01)
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def talk(requests, context):
    for request in requests:
        yield request.upper()


def bytes_method(kind, function):
    return kind(function, request_deserializer=None, response_serializer=None)


unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
methods = {
    "Echo": bytes_method(unary, echo),
    "Fail": bytes_method(unary, fail),
    "Slow": bytes_method(unary, slow),
    "Count": bytes_method(stream, count),
    "Talk": bytes_method(grpc.stream_stream_rpc_method_handler, talk),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Test", methods),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(None)
