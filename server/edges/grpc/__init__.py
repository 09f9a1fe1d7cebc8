"""The gRPC edge: what its methods do, and grpc.aio as the transport that carries them."""

import os

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # gRPC's core writes to stderr by itself, where our log lines go; read when grpc is imported
