"""Traces of requests: which ones (settings), what is known of each (tracer), and the thread that sends them (sender)."""
