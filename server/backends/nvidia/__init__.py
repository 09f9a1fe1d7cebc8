"""What the backends for NVIDIA GPUs share: the device, memory on both sides of it, and TensorRT's library."""
