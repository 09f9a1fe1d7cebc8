"""The demo's trained models: each file stands alone, because the exporter's child process sees no other file of this project."""
