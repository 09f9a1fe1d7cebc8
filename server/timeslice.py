"""Long turns on a core for threads that compute, so that those which answer needn't wait for a turn's end.

Linux (EEVDF, from 6.12 on) lets a thread say how long its turns may be. Its share of the core stays the same; but a thread that wakes and
asks for shorter turns, as all do by default, takes the core at once instead of up to 3 ms later. Measured on two cores: of the time that
small requests waited for a core beside a JSON helper at nice 10, nine tenths went away. Elsewhere it does nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

USUAL = 0.0  # the kernel's own, for threads that wait for a device: they have to wake at once
LONG = 0.01  # seconds, for threads that run batches on the cores: among themselves they still take turns in milliseconds
LONGEST = 0.1  # seconds, the kernel's own limit: for background work that gives way to everybody
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period: sched_setattr(2)


def take_turns(seconds: float) -> bool:
    """Have the calling thread, and those that it starts from now on, compute in turns of so long. False where that can't be had."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, round(seconds * 1e9), 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
