"""Digests between locations, and between the nodes of one: gRPC, one stream a pair, mutual TLS by config (BALANCING 5).

    wire     frames and digests: what is valid, how large it may be
    session  one stream's protocol as values in, values out: who is there, how far away, what the secret is
    mesh     the streams themselves: listening, dialling again, what is counted

`mesh_pb2` is made from `mesh.proto` by `make proto`; a test holds it against its source.

Arrows: `wire` < `session` < `mesh`; all may import the balancer's values, nothing else of ours. Only the agent imports it.
"""
