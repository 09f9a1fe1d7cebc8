"""GPU figures: what is shown of a driver's answers, and of a driver that hasn't any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import pytest

from server.metrics import gpu
from server.metrics.gpu import Gpu, Gpus
from tests.server.metrics.nvml import FakeNvml, NVMLError

LOST = NVMLError(15, "GPU is lost")


@contextmanager
def sampling(nvml: Any) -> Iterator[tuple[Gpus, list[str]]]:
    """A sampler at work, and what it told."""
    told: list[str] = []
    gpus = Gpus(told.append, nvml, interval=0.01)
    gpus.start()
    try:
        yield gpus, told
    finally:
        gpus.close()


def until(found: Callable[[], bool]) -> None:
    end = monotonic() + 20
    while not found():
        assert monotonic() < end
        sleep(0.005)


def test_what_a_t4_says() -> None:
    nvml = FakeNvml()
    with sampling(nvml) as (gpus, told):
        until(lambda: len(gpus.read()) == 2)
        assert gpus.read()[0] == Gpu("0", "GPU-0", 0.4, 15843721216, 3 << 30, 61, 45.5, 70, 123456.789, 1.0, 2)
        assert (gpus.read()[1].index, gpus.read()[1].utilization) == ("1", 0.41)
        until(lambda: told == ["figures of 2 GPUs"])  # said after the figures are there
    assert nvml.running == 0


@pytest.mark.parametrize(
    ("nvml", "state"),
    [
        (None, "no figures of GPUs: nvidia-ml-py isn't installed (pip install nvidia-ml-py)"),
        (FakeNvml(broken={("nvmlInit", 0): NVMLError(9, "Driver Not Loaded")}), "no NVIDIA driver here (Driver Not Loaded)"),
        (FakeNvml(count=0), "no figures of GPUs: there's no GPU in this machine"),
        (FakeNvml(broken={("nvmlDeviceGetCount", 0): LOST}), "no figures of GPUs any more: GPU is lost"),
    ],
    ids=["no library", "no driver", "no GPU", "a driver that fails"],
)
def test_without_a_gpu_there_are_no_figures(nvml: Any, state: str) -> None:
    with sampling(nvml) as (gpus, _):
        until(lambda: state in gpus.state)
        assert gpus.read() == ()


def test_a_figure_that_the_gpu_does_not_have_is_left_out() -> None:
    nvml = FakeNvml(count=1, broken={("nvmlDeviceGetUtilizationRates", 0): NVMLError(3, "Not Supported")})  # as under MIG
    with sampling(nvml) as (gpus, _):
        until(lambda: len(gpus.read()) == 1)
        (one,) = gpus.read()
        assert (one.utilization, one.temperature, one.lost) == (None, 61, "")


def test_a_gpu_that_is_lost_hides_no_other_and_may_come_back() -> None:
    nvml = FakeNvml()
    with sampling(nvml) as (gpus, told):
        until(lambda: len(gpus.read()) == 2)
        nvml.broken["nvmlDeviceGetMemoryInfo", 0] = LOST
        until(lambda: gpus.read()[0].lost == "GPU is lost")
        assert gpus.read()[0] == Gpu("0", "GPU-0", lost="GPU is lost")
        assert gpus.read()[1].utilization == 0.41
        nvml.broken.clear()
        until(lambda: gpus.read()[0].utilization == 0.4)
        until(lambda: len(told) == 3)
        assert told == ["figures of 2 GPUs", "GPU 0: GPU is lost", "figures of 2 GPUs"]


def test_a_gpu_that_cannot_be_opened_hides_no_other() -> None:
    with sampling(FakeNvml(broken={("nvmlDeviceGetHandleByIndex", 0): LOST})) as (gpus, _):
        until(lambda: len(gpus.read()) == 2)
        assert [(each.index, each.lost) for each in gpus.read()] == [("0", "GPU is lost"), ("1", "")]


def test_a_driver_that_hangs_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(count=1)
    hangs = threading.Event()
    with sampling(nvml) as (gpus, _):
        until(lambda: len(gpus.read()) == 1)
        nvml.waits = hangs.wait
        monkeypatch.setattr(gpu, "STALE", 0.05)
        until(lambda: gpus.read()[0].lost == "the driver doesn't answer")
        hangs.set()
        until(lambda: gpus.read()[0].lost == "")
