"""The TensorRT library: imported when first asked for, and made to say what went wrong.

Its methods answer None or False on failure and tell a logger why; ours keeps those words for the error message. Only what TensorRT 10.13
to 11.4 have alike is used: tests/nvidia checks each name and signature against the bindings of 10.16 and 11.4.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from server.errors import ModelDefect

if TYPE_CHECKING:
    import tensorrt as trt

KEPT = 3
ADVICE = "on a machine with an NVIDIA GPU: pip install 'tidegate[gpu]'"


class Library(NamedTuple):
    """TensorRT, imported: its version, a logger for its objects, and the logger's last errors."""

    version: str
    logger: trt.ILogger
    errors: deque[str]

    def blame(self) -> str:
        """What TensorRT last complained of, and forgets it."""
        text = "; ".join(" ".join(error.split())[:300] for error in self.errors) or "it gives no reason"
        self.errors.clear()
        return text


def load() -> Library:
    """TensorRT with a logger of its own. Raises ModelDefect where it isn't installed or can't load its libraries."""
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise ModelDefect(f"TensorRT can't be imported: {error}; {ADVICE}") from error
    errors: deque[str] = deque(maxlen=KEPT)

    class Listener(trt.ILogger):
        """Keeps errors for whoever asks; the rest would fill the log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(msg)

    return Library(trt.__version__, Listener(), errors)
