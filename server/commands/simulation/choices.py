"""What `tidegate simulate` can be told to try: the words of --compare, which are those of its flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.backends.latency_table import BUILT_IN, Curve, read_table
from server.errors import ConfigError
from server.quantities import Seconds, Timeout
from server.validation import complaints


class Choices(BaseModel):
    """One setting to try."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Timeout | None = None
    on_late: Literal["reject", "serve"] = "reject"
    max_rows: int = Field(default=64, ge=1, le=65536)
    max_wait: Seconds | None = None
    max_queue_rows: int = Field(default=1024, ge=1)
    lanes: int = Field(default=1, ge=1, le=1024)
    speed: float = Field(default=1.0, gt=0, le=1e6)
    table: str | None = None
    model: str | None = None
    precision: str = "fp32"

    def changed(self, text: str) -> Choices:
        """This setting with the changes of `name=value,name=value`. Raises ConfigError with the nearest right word."""
        changes: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if not equals:
                raise ConfigError(f"--compare {text!r}: expected name=value, such as objective=20ms,lanes=2; got {part!r}")
            changes[name.strip().replace("-", "_")] = value.strip()
        return choices_from({**self.model_dump(exclude_unset=True), **changes}, f"--compare {text!r}: {{}}")

    def curve(self) -> Curve:
        """The published run times. Raises ConfigError: no such table, model or precision."""
        if self.model is None:
            raise ConfigError(f"--table {self.table}: needs --model NAME, one of the table's models")
        table = self.table or "t4"
        return read_table(BUILT_IN.get(table, Path(table))).curve(self.model, self.precision)


def choices_from(values: Mapping[str, Any], where: str) -> Choices:
    """The setting with these values; `where` has {} for the name in an error's text."""
    try:
        return Choices.model_validate(values)
    except ValidationError as error:
        wrong = [f"{where.format(str(key[0]).replace('_', '-') if key else '')}: {text}" for key, text in complaints(Choices, error)]
        raise ConfigError("; ".join(wrong)) from error
