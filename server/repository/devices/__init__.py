"""What a model's files need of the GPU that they run on."""
