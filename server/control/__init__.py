"""What the control plane is made of: how a version comes to serve."""
