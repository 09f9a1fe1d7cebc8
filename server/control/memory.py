"""What a version holds in memory, as far as it can be seen when it's loaded. An estimate, for the statistics."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from server.backends.base import VariantSpec
from server.lanes.base import Lane
from server.lanes.process.lane import ProcessLane
from server.lanes.sweep import file_size
from server.metrics.statistics import Memory


def memory_of(spec: VariantSpec, lanes: Sequence[Lane]) -> tuple[Memory, ...]:
    """What process lanes' children hold; of lanes in this process, whose memory is everyone's, and of a GPU the size of the model's file,
    once for each lane."""
    weights = file_size(spec.path) * len(lanes)
    held = sum(_resident(lane.pid) for lane in lanes if isinstance(lane, ProcessLane))
    if spec.device.startswith("cuda:"):
        found = [Memory("GPU", int(spec.device.removeprefix("cuda:")), weights), Memory("CPU", 0, held)]
    else:
        found = [Memory("CPU", 0, held or weights)]
    return tuple(each for each in found if each.bytes)


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # its end is the supervisor's business
        return 0
