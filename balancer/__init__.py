"""The decisions: which instance takes a request, who waits, who is refused, who is ejected.

Pure: values in, values out. Nothing here reads a clock, a socket, a file or a random source that was not handed to
it, so the proxy, the tests and the simulator run the same code. Exceptions: `board` (shared memory) and `mesh` (gRPC).

Arrows: `balancer` imports nothing of ours; `balancer.board` and `balancer.mesh` may import the rest of `balancer`.
"""
