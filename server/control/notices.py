"""What the control plane tells of a version: to the index, the log and the ring of recent events."""

from __future__ import annotations

import re
from time import monotonic

from server.control.uploads import PLACE
from server.explain import capacity_of
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.router.table import ServedVersion, ServingTable, State


class Notices:
    def __init__(self, table: ServingTable, recorder: Recorder, journal: Journal, root: re.Pattern[str]) -> None:
        """`root` matches what only the operator needs to know of a path."""
        self._table = table
        self._recorder = recorder
        self._journal = journal
        self._root = root

    def ready(self, served: ServedVersion) -> None:
        """A version serves from now on."""
        self._table.put(served)
        self._recorder.ring.routing((monotonic(), served.model, served.version, "ready"))
        if not capacity_of(served).feasible:
            self._journal.lifecycle(
                "objective_not_feasible", level="warning", model=served.model, version=served.version, reason=served.reason
            )
        self._journal.lifecycle(
            "model_ready", model=served.model, version=served.version, platform=served.platform, lanes=served.lanes, note=served.reason
        )

    def fault(self, name: str, version: str, reason: str) -> str:
        """Note why a version can't be served as its files are now; the reason as everyone may read it."""
        told = self.told(reason)
        served = self._table.version(name, version)
        if served is None or served.serving is None:
            self.unavailable(name, version, reason)
            return told
        served.reason = "; ".join(
            filter(None, (served.note, f"what was loaded before still serves, as its files can't be served now: {told}"))
        )
        self._journal.lifecycle("model_not_reloaded", level="warning", model=name, version=version, reason=reason)
        return told

    def unavailable(self, name: str, version: str, reason: str) -> None:
        """A version can't be served."""
        self._table.put(ServedVersion(name, version, State.UNAVAILABLE, self.told(reason)))
        self._recorder.ring.routing((monotonic(), name, version, f"unavailable: {reason}"))
        self._journal.lifecycle("model_unavailable", model=name, version=version, reason=reason)

    def told(self, reason: str) -> str:
        """A reason as anyone may read it in the index: only the operator needs to know where the repository lies."""
        return PLACE.sub("", self._root.sub("", reason))
