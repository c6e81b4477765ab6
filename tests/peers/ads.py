#!/usr/bin/env python3
"""A control plane that is not ours: `ads.py PORT DIR` serves the resources in DIR/<node id>.yaml over ADS, both protocols.

Built on gRPC's own server and the xds-protos package. A change of the file is pushed. Every refusal is printed as a line
that begins with NACK, every acknowledgement as ACK.
"""
import hashlib
import importlib
import os
import pkgutil
import queue
import sys
import threading
from concurrent import futures

import grpc
import yaml
from google.protobuf import any_pb2, json_format

PREFIX = "type.googleapis.com/"
CLUSTER = PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRET = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
ORDER = [CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET]  # make before break
WHOLE = {CLUSTER, LISTENER}                           # state-of-the-world answers are the full state


def know_all_types():
    import envoy.config
    import envoy.extensions
    import envoy.type
    for package in (envoy.config, envoy.extensions, envoy.type):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name.endswith("_pb2"):
                try:
                    importlib.import_module(module.name)
                except Exception:  # a few need packages that are not there; their types are not used
                    pass


know_all_types()
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2  # noqa: E402


def resources(folder, node):
    """type URL → name → (version, Any)"""
    found = {}
    with open(os.path.join(folder, node + ".yaml")) as file:
        for resource in yaml.safe_load(file):
            packed = json_format.ParseDict(resource, any_pb2.Any())
            name = resource.get("name") or resource["cluster_name"]
            found.setdefault(packed.type_url, {})[name] = (hashlib.sha256(packed.value).hexdigest()[:12], packed)
    return found


def events(requests, folder, node_of):
    """Requests as they come, and None whenever the node's file may have changed."""
    inbox = queue.Queue()

    def read():
        try:
            for request in requests:
                inbox.put(request)
        finally:
            inbox.put("end")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            event = inbox.get(timeout=0.1)
        except queue.Empty:
            event = None
        if isinstance(event, str):
            return
        yield event


def told(node, request):
    if request.HasField("error_detail"):
        print("NACK", node, request.type_url, request.error_detail.message, flush=True)
    elif request.response_nonce:
        print("ACK", node, request.type_url, flush=True)


class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, folder):
        self.folder = folder

    def StreamAggregatedResources(self, requests, context):
        node, nonce, states = None, 0, {}
        for request in events(requests, self.folder, lambda: node):
            if request is not None:
                node = request.node.id or node
                told(node, request)
                state = states.setdefault(request.type_url, {"names": None, "nonce": "", "sent": None})
                if request.response_nonce != state["nonce"]:
                    continue  # stale: the names come again with the next
                names = set(request.resource_names)
                if state["names"] is None or names - state["names"]:
                    state["sent"] = None  # what is newly asked for is answered, changed or not
                state["names"] = names
            for kind in ORDER:
                state = states.get(kind)
                if state is None or node is None:
                    continue
                held = resources(self.folder, node).get(kind, {})
                wanted = held if kind in WHOLE else {n: held[n] for n in sorted(state["names"]) if n in held}
                version = hashlib.sha256(repr(sorted((n, v) for n, (v, _) in wanted.items())).encode()).hexdigest()[:12]
                if version == state["sent"] or (kind not in WHOLE and not wanted):
                    continue
                nonce += 1
                state.update(nonce=str(nonce), sent=version)
                yield discovery_pb2.DiscoveryResponse(
                    version_info=version, type_url=kind, nonce=str(nonce), resources=[r for _, r in wanted.values()])

    def DeltaAggregatedResources(self, requests, context):
        node, nonce, states = None, 0, {}
        for request in events(requests, self.folder, lambda: node):
            asked = set()
            if request is not None:
                node = request.node.id or node
                told(node, request)
                asked = set(request.resource_names_subscribe) - {"*"}
                if request.type_url not in states:
                    every = not request.resource_names_subscribe or "*" in request.resource_names_subscribe
                    states[request.type_url] = {"every": every, "names": set(), "first": True,
                                                "sent": dict(request.initial_resource_versions)}
                state = states[request.type_url]
                state["names"] = (state["names"] | asked) - set(request.resource_names_unsubscribe)
            for kind in ORDER:
                state = states.get(kind)
                if state is None:
                    continue
                held = resources(self.folder, node).get(kind, {})
                again = asked if request is not None and request.type_url == kind else set()
                wanted = set(held) if state["every"] else state["names"]
                changed = [n for n in sorted(wanted & set(held)) if state["sent"].get(n) != held[n][0] or n in again]
                gone = sorted((set(state["sent"]) | again) - set(held))
                first, state["first"] = state["first"], False
                if not changed and not gone and not (first and state["every"]):
                    continue
                state["sent"].update((n, held[n][0]) for n in changed)
                for name in gone:
                    state["sent"].pop(name, None)
                nonce += 1
                yield discovery_pb2.DeltaDiscoveryResponse(
                    type_url=kind, nonce=str(nonce), removed_resources=gone,
                    resources=[discovery_pb2.Resource(name=n, version=held[n][0], resource=held[n][1]) for n in changed])


port, folder = sys.argv[1:]
server = grpc.server(futures.ThreadPoolExecutor(16))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Ads(folder), server)
server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
print("ready", flush=True)
server.wait_for_termination()
