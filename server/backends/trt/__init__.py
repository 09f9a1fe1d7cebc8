"""TensorRT: engines run by its own runtime and cuda-bindings. Unproven on a GPU until docs/proofs/ holds a proof (`make gpu-check`)."""
