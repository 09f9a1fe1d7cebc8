"""This machine's CPU and memory, by psutil."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from monitor.alerts import labels_of
from monitor.series.window import Reading

JOB = "host"


class Host:
    """One target, this machine. The first reading's CPU share is since the start of the monitor."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        psutil.cpu_percent(interval=None)

    async def read(self) -> Sequence[Reading]:
        labels = labels_of({"job": JOB, "instance": self._instance})
        cpu, memory = psutil.cpu_percent(interval=None) / 100, psutil.virtual_memory().percent / 100
        shares = {"tidegate_host_cpu_utilization_ratio": cpu, "tidegate_host_memory_utilization_ratio": memory}
        return [Reading(JOB, self._instance, [(name, labels, value) for name, value in shares.items()])]

    async def close(self) -> None:
        pass
