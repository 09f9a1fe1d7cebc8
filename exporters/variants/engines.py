"""TensorRT engines of what was made, built on the GPU that's here and proved on it; without one, what it would take is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from exporters.draft import Candidate, Draft
from exporters.formats import to_trt, trt_build
from exporters.formats.to_trt import Profile
from exporters.formats.trt_build import Settings
from exporters.parity.measure import TIMED_ROWS
from exporters.plan import EngineWish, ExportError
from exporters.proof import prove
from server.backends.nvidia.cuda import Gpu, open_gpu
from server.backends.nvidia.library import load
from server.errors import ModelDefect
from server.repository.configs.reading import read_model_config
from server.repository.model_config import Batching
from server.tensors import TensorSpec

DEVICE = "cuda:0"
UNPROVEN = "TensorRT engines are unproven on a GPU until docs/proofs/ holds a proof (make gpu-check)"


def build_engines(draft: Draft) -> None:
    """Add an engine to each variant; without TensorRT or a GPU a note instead. Raises ExportError where one isn't the same model."""
    try:
        load()
        gpu = open_gpu(DEVICE)
    except ModelDefect as missing:
        draft.reporter.note(f"no engine was built, the entry holds ONNX: {missing}; then `tidegate export` again, there")
        return
    draft.reporter.note(UNPROVEN)
    for candidate in list(draft.variants.values()):
        draft.engines[candidate.precision] = _engine(draft, candidate, gpu)


def _engine(draft: Draft, source: Candidate, gpu: Gpu) -> Candidate:
    wish, precision = draft.plan.engine, source.precision
    settings = settings_for(draft.plan.level, wish)
    proof_rows = 0 if draft.traced.unbatched is not None else max(draft.traced.rows)
    shapes = list(spans(draft.inputs, _batching(draft), wish, proof_rows))
    built = trt_build.build(source.file, shapes, settings, gpu, lambda text: draft.reporter.detail(f"{precision}: {text}"))
    file = draft.path(precision).with_suffix(".plan")
    file.write_bytes(built.plan)
    method = f"TensorRT {built.facts.tensorrt} from {source.method}"
    made = Candidate(precision, method, source.level, file, source.graph, source.nodes, source.kept, engine=built.facts)
    if not prove(draft, made):
        failures = "; ".join(made.failures)
        raise ExportError(f"{draft.plan.model.label}: the {precision} engine isn't the same model: {failures}{draft.suspects()}")
    return made


def settings_for(level: int, wish: EngineWish) -> Settings:
    """How an engine of a graph of this level is built."""
    return Settings(
        level=level,
        workspace=wish.workspace,
        version_compatible=wish.version_compatible,
        timing_cache=wish.timing_cache,
        tf32=level >= 4,
    )


def spans(inputs: Sequence[TensorSpec], batching: Batching, wish: EngineWish, proof_rows: int) -> Iterator[Mapping[str, Profile]]:
    """A profile for each of the batching settings' preferred rows, tuned for them, and one up to the most rows, tuned for `likely_rows`.

    The last takes as many rows as the proof's batches have (`proof_rows`, 0 for a model that isn't batched), also where the server will
    send fewer.
    """
    most = max(wish.most_rows or batching.max_rows, proof_rows, *TIMED_ROWS) if proof_rows else 1
    steps = [rows for rows in batching.preferred_rows if rows < most]
    least = 1
    for rows in steps:
        yield to_trt.profiles(inputs, rows, rows, least)
        least = rows + 1
    likely = min(most, max(least, wish.likely_rows or (most if steps else (most + 3) // 4)))
    yield to_trt.profiles(inputs, likely, most, least)


def _batching(draft: Draft) -> Batching:
    plan = draft.plan
    return entry_batching(plan.repository / plan.name) if plan.repository else Batching()


def entry_batching(folder: Path) -> Batching:
    """What model.yaml says where the result goes; the defaults where there's none. Raises ExportError where it can't be read."""
    try:
        return read_model_config(folder).batching if folder.is_dir() else Batching()
    except ModelDefect as error:
        raise ExportError(f"the engine's rows come from model.yaml: {error}") from error
