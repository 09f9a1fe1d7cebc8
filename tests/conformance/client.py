"""One transport's client in a process of its own: `python -m tests.conformance.client TRANSPORT ADDRESS`.

It reads lines with the name of a case, and answers each with a line of JSON: null or the traceback of the case that failed, and all calls
that were answered so far.
"""

from __future__ import annotations

import json
import sys
import traceback

from tests.conformance.cases import CASES, HTTP_CASES
from tests.conformance.regions import TRANSPORTS


def main(name: str, address: str) -> None:
    """Answer cases until stdin ends."""
    transport = TRANSPORTS[name](address)
    cases = {**CASES, **HTTP_CASES}
    for line in sys.stdin:
        failure = None
        try:
            cases[json.loads(line)](transport)
        except BaseException:  # noqa: BLE001 - whatever it was, the test that asked for the case tells it
            failure = traceback.format_exc()
        sys.stdout.write(json.dumps([failure, sorted(transport.calls)]) + "\n")
        sys.stdout.flush()
    transport.client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
