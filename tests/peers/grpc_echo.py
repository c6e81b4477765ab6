#!/usr/bin/env python3
"""gRPC's own server and client: `grpc_echo.py serve PORT IDENTITY` and `grpc_echo.py call TARGET`.

Unary and bidirectional streaming over raw bytes, so that no generated code is needed. `call` makes 20 unary calls, one
stream of 50 messages and one call that fails with a status and trailers, and exits 1 when any differs from what it must be.
"""
import sys
from concurrent import futures

import grpc

ECHO, CHAT, FAIL = "/test.Echo/Unary", "/test.Echo/Chat", "/test.Echo/Fail"


class Handler(grpc.GenericRpcHandler):
    def __init__(self, identity):
        self.identity = identity.encode()

    def service(self, details):
        if details.method == ECHO:
            return grpc.unary_unary_rpc_method_handler(self.unary)
        if details.method == CHAT:
            return grpc.stream_stream_rpc_method_handler(self.chat)
        if details.method == FAIL:
            return grpc.unary_unary_rpc_method_handler(self.fail)
        return None

    def unary(self, request, context):
        context.set_trailing_metadata((("x-served-by", self.identity.decode()),))
        return self.identity + b":" + request

    def chat(self, requests, context):
        for request in requests:
            yield self.identity + b":" + request

    def fail(self, request, context):
        context.set_trailing_metadata((("x-served-by", self.identity.decode()),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")


def serve(port, identity):
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Handler(identity),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def call(target):
    channel = grpc.insecure_channel(target)
    grpc.channel_ready_future(channel).result(timeout=10)
    unary = channel.unary_unary(ECHO)
    for n in range(20):
        answer, done = unary.with_call(b"%d" % n, timeout=10)
        assert answer.endswith(b":%d" % n), answer
        assert dict(done.trailing_metadata())["x-served-by"], done.trailing_metadata()
    chat = channel.stream_stream(CHAT)
    answers = list(chat(iter([b"%d" % n for n in range(50)]), timeout=20))
    assert [a.split(b":")[1] for a in answers] == [b"%d" % n for n in range(50)], answers
    try:
        channel.unary_unary(FAIL)(b"", timeout=10)
        raise AssertionError("the failing call succeeded")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "as asked", error
    print("all as it must be")


def refused(target):
    channel = grpc.insecure_channel(target)
    try:
        channel.unary_unary(ECHO)(b"x", timeout=10)
        raise AssertionError("the call was let through")
    except grpc.RpcError as error:
        print(error.code().name)


{"serve": serve, "call": call, "refused": refused}[sys.argv[1]](*sys.argv[2:])
