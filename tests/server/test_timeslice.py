"""Threads that compute ask for long turns; what they start inherits them, and nothing else about them changes."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from threading import Thread, get_native_id

import pytest

from server.timeslice import LONG, LONGEST, USUAL, take_turns

SUPPORTED = platform.machine() in ("x86_64", "aarch64") and tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)


def slice_of(task: int) -> int:
    text = Path(f"/proc/self/task/{task}/sched").read_text()
    found = re.search(r"^se\.slice\s*:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def in_thread(work: object) -> list[int]:
    found: list[int] = []

    def inner() -> None:
        found.append(slice_of(get_native_id()))

    def outer() -> None:
        assert callable(work)
        found.append(int(work()))
        found.append(slice_of(get_native_id()))
        child = Thread(target=inner)
        child.start()
        child.join()
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        found.append(os.sched_getscheduler(0))

    thread = Thread(target=outer)
    thread.start()
    thread.join()
    return found


@pytest.mark.skipif(not SUPPORTED or not Path("/proc/self/sched").exists(), reason="this kernel doesn't say how long a thread's turns are")
def test_a_thread_and_what_it_starts_take_long_turns() -> None:
    before = slice_of(os.getpid())
    taken, own, inherited, nice, policy = in_thread(lambda: take_turns(LONGEST))
    assert (taken, own, inherited) == (1, LONGEST * 1e9, LONGEST * 1e9)
    assert (nice, policy) == (os.getpriority(os.PRIO_PROCESS, 0), os.SCHED_OTHER)
    assert slice_of(os.getpid()) == before < LONG * 1e9, "the loop's thread answers, and keeps short ones"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux")
def test_a_policy_that_the_operator_chose_stays() -> None:
    def batch() -> bool:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return take_turns(LONG)

    taken, *_, policy = in_thread(batch)
    assert (taken, policy) == (0, os.SCHED_BATCH)


@pytest.mark.skipif(not SUPPORTED or not Path("/proc/self/sched").exists(), reason="this kernel doesn't say how long a thread's turns are")
def test_usual_turns_are_the_kernels_own() -> None:
    def back_again() -> bool:
        return take_turns(LONG) and take_turns(USUAL)

    taken, own, *_ = in_thread(back_again)
    assert (taken, own) == (1, slice_of(os.getpid()))


def test_an_unknown_machine_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert take_turns(LONG) is False
