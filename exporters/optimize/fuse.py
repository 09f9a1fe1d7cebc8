"""Level 3: a transformer's attention, layer normalisations and GELUs become one operator each, which only onnxruntime knows.

It's for CUDA, whose kernels for them are fast; on a CPU they were measured slower than the plain graph. Level 4 may also let GELU be
computed by an approximation.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporters.disk.onnx_files import is_split, load
from exporters.plan import ExportError

DOMAIN = "com.microsoft"


def attention_shape(source: Path) -> tuple[int, int]:
    """Heads and width of a transformer's attention, 0 and 0 where the graph shows none: attention can't be fused without them.

    The width is a layer normalisation's; it's split into heads where something is reshaped to [..., heads, width / heads].
    """
    import onnx

    model = load(source)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    parts = {node.output[0]: list(node.input) for node in model.graph.node if node.op_type == "Concat"}
    norms = [
        constants[node.input[1]].size for node in model.graph.node if node.op_type == "LayerNormalization" and node.input[1] in constants
    ]
    found: Counter[tuple[int, int]] = Counter()
    for node in model.graph.node:
        if node.op_type == "Reshape" and norms:
            shape = parts.get(node.input[1], [node.input[1]])
            found.update(_heads([constants.get(name) for name in shape], max(norms, key=norms.count)))
    return found.most_common(1)[0][0] if found else (0, 0)


def _heads(shape: Sequence[NDArray[Any] | None], width: int) -> Iterator[tuple[int, int]]:
    """Heads and width, where the shape (its parts; None is unknown until it runs) is [rows, tokens, heads, width / heads]."""
    numbers = [None if part is None else int(number) for part in shape for number in ([0] if part is None else part.ravel())]
    if len(numbers) == 4 and numbers[3] and numbers[3] > 0 and width % numbers[3] == 0:
        heads = width // numbers[3]
        if numbers[2] in (-1, heads) and heads > 1:
            yield heads, width


def fuse(source: Path, target: Path, approximate: bool = False, attention: bool = True) -> Mapping[str, int]:
    """Write `source` with what could be fused. Returns the fused operators by count; without any, nothing is written.

    `attention` False leaves attention as it is: fused, a mask may be read as a length, which is right for padding at the end only
    (measured on MiniLM: equal to 1e-7 there, cosine 0.23 with padding at the start, 0.80 with holes). Raises ExportError
    where onnxruntime's optimizer can't read the graph.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_gelu_approximation = approximate
    options.enable_attention = attention
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            heads, width = attention_shape(source)
            # Level 0: its own fusions only, none of the session's.
            made = optimize_model(str(source), "bert", heads, width, optimization_options=options, opt_level=0)
            fused = {node.op_type for node in made.nodes() if node.domain == DOMAIN}
            counts = {operator: sum(node.op_type == operator for node in made.nodes()) for operator in sorted(fused)}
            if counts:
                made.save_model_to_file(str(target), use_external_data_format=is_split(source))
    except Exception as error:  # a rewriter that meets a graph it wasn't made for raises anything
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"onnxruntime can't fuse the graph ({type(error).__name__}: {reason}); --optimization-level 2 does without"
        ) from error
    finally:
        logging.disable(before)
    return counts
