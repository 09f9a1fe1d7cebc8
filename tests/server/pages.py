"""The parts of docs/ that are written from the code. `python -m tests.server.pages` writes them; test_pages says when that's due."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from pathlib import Path

from server import errors
from server.config import KEYS, Settings, settings_schema
from server.edges.grpc.status import code_of
from server.edges.http_errors import status_of
from server.engine.recovery import diagram
from server.errors import TidegateError
from server.explain import batcher_schema
from server.gate import ANONYMOUS, CLASSES, Operation
from server.metrics.catalogue import CATALOGUE, OUTCOMES, SUCCESS, TRITON
from server.precision import variants
from server.recording import Arrival
from tests.deploy import pages as chart

DOCS = Path(__file__).parents[2] / "docs"


def settings_table() -> str:
    """Every setting with its default and what it does."""
    rows = []
    for flat, key in KEYS.items():
        model: type = Settings
        for part in key[:-1]:
            model = model.model_fields[part].annotation  # type: ignore[attr-defined]
        field = model.model_fields[key[-1]]  # type: ignore[attr-defined]
        default = "" if field.is_required() else f"`{_plain(key, field.default)}`"
        rows.append((f"`{'.'.join(key)}`", f"`TIDEGATE_{flat.upper()}`", default, field.description))
    return _table(("Setting", "Variable", "Default", "What it is"), rows)


def _plain(key: tuple[str, ...], value: object) -> str:
    """A default as a person would write it in the file."""
    if value in (None, ()):
        return "none"
    if isinstance(value, int) and value >= 1024 and not key[-1].endswith("port"):
        power = (value.bit_length() - 1) // 10
        return f"{value >> 10 * power}{('B', 'KiB', 'MiB', 'GiB')[power]}"
    if isinstance(value, float) and key[-1] not in ("access_sample", "sample"):
        return f"{value:g}s"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def arrival_schema() -> str:
    """JSON Schema of an arrival's line."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Arrival.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def gate_table() -> str:
    """Each operation, its class, and who may."""
    rows = [
        (
            f"`{operation.name.lower()}`",
            operation.what,
            operation.grant,
            "yes" if operation.grant in ANONYMOUS.grants else "on loopback only",
            f"tokens with `{operation.grant}`",
        )
        for operation in Operation
    ]
    return _table(("Operation", "What it is", "Class", "Anonymous", "Others"), rows)


def classes_table() -> str:
    """The classes of operations."""
    return _table(("Class", "Lets a principal"), ((f"`{name}`", what) for name, what in CLASSES.items()))


def errors_table() -> str:
    """Each kind of error that a request can meet, in the words of the tree's drawing."""
    drawn = re.findall(r"^[│ ]*[├└]── (\w+) +(.+)$", errors.__doc__ or "", re.MULTILINE)
    rows: list[tuple[int, str, str, str]] = []
    for name, what in drawn:
        error: TidegateError = getattr(errors, name).__new__(getattr(errors, name))
        if name not in ("Cancelled", "ConfigError"):  # nobody is left to answer; no request meets the other
            rows.append((status_of(error), code_of(error), what, f"`{error.reason}`"))
    rows.sort(key=itemgetter(0))
    return _table(("Status", "gRPC", "When", "`reason` in metrics"), rows)


def metrics_table() -> str:
    """The catalogue."""
    rows = (
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help) for metric in CATALOGUE.values()
    )
    return _table(("Metric", "Kind", "Labels", "What it is"), rows)


def triton_table() -> str:
    """Triton's names."""
    rows = (
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help) for metric in TRITON.values()
    )
    return _table(("Metric", "Kind", "Labels", "What it is"), rows)


def buckets_table() -> str:
    """The histograms' bounds."""
    rows = ((f"`{metric.name}`", " ".join(f"{bound:g}" for bound in metric.buckets)) for metric in CATALOGUE.values() if metric.buckets)
    return _table(("Histogram", "Upper bounds, besides +Inf"), rows)


def outcomes_table() -> str:
    """Outcomes and their reasons."""
    rows = [(f"`{SUCCESS}`", "")]
    rows += [
        (f"`{outcome}`", ", ".join(f"`{reason}`" for reason, of in OUTCOMES.items() if of == outcome))
        for outcome in dict.fromkeys(OUTCOMES.values())
    ]
    return _table(("`outcome`", "`reason`"), rows)


def recovery_diagram() -> str:
    """What is done with a batch whose lane was lost."""
    return f"```mermaid\n{diagram()}\n```"


def variants_diagram() -> str:
    """What becomes of a variant."""
    return f"```mermaid\n{variants.diagram()}\n```"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = tuple(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def section(page: str, name: str, content: str) -> str:
    """`page` with what stands between the marks of `name` replaced."""
    begin, end = f"<!-- {name}: written by python -m tests.server.pages -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(page), f"the page has no marks for {name!r}"
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", page)


def _sectioned(name: str, sections: Mapping[str, Callable[[], str]]) -> tuple[Path, Callable[[], str]]:
    path = DOCS / name

    def page() -> str:
        text = path.read_text()
        for part, content in sections.items():
            text = section(text, part, content())
        return text

    return path, page


PAGES: Mapping[Path, Callable[[], str]] = dict(
    (
        (DOCS / "schemas" / "arrival.json", arrival_schema),
        (DOCS / "schemas" / "server.json", lambda: json.dumps(settings_schema(), indent=2, ensure_ascii=False) + "\n"),
        (DOCS / "schemas" / "batcher.json", lambda: json.dumps(batcher_schema(), indent=2, ensure_ascii=False) + "\n"),
        (chart.CHART / "values.schema.json", chart.schema),
        _sectioned("configuration.md", {"settings": settings_table}),
        _sectioned("lanes.md", {"recovery": recovery_diagram}),
        _sectioned("metrics.md", {"metrics": metrics_table, "triton": triton_table, "buckets": buckets_table, "outcomes": outcomes_table}),
        _sectioned("precision.md", {"variants": variants_diagram}),
        _sectioned("protocol.md", {"errors": errors_table}),
        _sectioned("security.md", {"classes": classes_table, "gate": gate_table}),
    )
)
"""File → what it should hold."""


if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text())
