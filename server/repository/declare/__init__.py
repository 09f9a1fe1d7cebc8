"""Versions that model.yaml declares, and what it says of those that a file declares."""
