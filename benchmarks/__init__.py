"""What `make bench-…` runs."""

import server.backends  # noqa: F401 (turns onnxruntime's telemetry off before a benchmark imports it)
