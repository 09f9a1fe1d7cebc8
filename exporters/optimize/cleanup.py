"""Levels 1 and 2: onnxslim folds constants, drops dead nodes and merges equal ones; the file stays portable ONNX.

What else makes a graph fast (fusions, a CPU's own layouts) onnxruntime does when it loads the file at level 2: shipped in the file,
it would tie it to one runtime and one kind of CPU.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from exporters.plan import ExportError


def clean(source: Path, target: Path) -> None:
    """Write a cleaned copy of `source` to `target`. Raises ExportError that names the level which does without."""
    import onnx
    import onnxslim

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = onnxslim.slim(str(source))
        if model is None:
            raise ValueError("it gave no model back")
        onnx.save(model, str(target))
    except Exception as error:  # a rewriter that meets a graph it wasn't made for raises anything
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"onnxslim can't clean the graph ({type(error).__name__}: {reason}); --optimization-level 0 does without"
        ) from error
