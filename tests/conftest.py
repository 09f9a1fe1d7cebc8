"""What every test gets: hypothesis without a deadline (the machine's other work must not fail a test)."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tidegate", deadline=None, print_blob=True)
settings.load_profile("tidegate")
