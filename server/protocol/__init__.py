"""Open Inference Protocol bytes ↔ messages. Pure: no I/O, no event loop, no web framework."""
