"""Models that answer a request more than once."""
