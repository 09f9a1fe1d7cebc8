"""TensorRT engines that the server has built on its own GPU."""
