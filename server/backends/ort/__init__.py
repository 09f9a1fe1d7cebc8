"""onnxruntime: ONNX files on the CPU, and by its CUDA and TensorRT providers on NVIDIA GPUs. What runs on a GPU is unproven there until
docs/proofs/ holds a proof (`make gpu-check`).
"""
