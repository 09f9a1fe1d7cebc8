import asyncio
from time import monotonic, sleep

from server.metrics.catalogue import CATALOGUE
from server.metrics.loop_probe import INTERVAL, LOOKS, LoopProbe
from server.metrics.recorder import Recorder


def spin(seconds: float) -> None:
    end = monotonic() + seconds
    while monotonic() < end:
        pass


async def test_a_quiet_loop_and_a_busy_one() -> None:
    recorder = Recorder()
    probe = LoopProbe(asyncio.get_running_loop(), recorder)

    def read() -> float:
        ((name, _, value),) = recorder.read(CATALOGUE)
        assert name == "tidegate_loop_busy_ratio"
        return value

    assert read() == 0.0
    probe.start()
    await asyncio.sleep(4 * INTERVAL)
    quiet = read()
    assert 0.0 <= quiet < 0.5
    for _ in range(8):
        spin(INTERVAL)
        await asyncio.sleep(0)
    assert read() > quiet
    assert read() <= 1.0
    probe.stop()
    assert read() == 0.0


async def test_a_loop_that_is_stuck_is_busy() -> None:
    probe = LoopProbe(asyncio.get_running_loop(), Recorder())
    probe.start()
    await asyncio.sleep(3 * INTERVAL)
    sleep(LOOKS * INTERVAL + INTERVAL)  # noqa: ASYNC251 - blocks the loop on purpose
    assert probe.ratio() == 1.0
    probe.stop()
