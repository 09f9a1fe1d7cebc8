"""What every test gets: hypothesis without a deadline (the machine's other work must not fail a test), and children that hear Ctrl-C also
where the tests run as a shell's background job, which ignores it and would hand that on."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("tidegate", deadline=None, print_blob=True)
settings.load_profile("tidegate")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
