"""`emulate` of model.yaml: which published latencies stand in for a device. Such a model has no file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.backends.latency_table import Curve, read_table, table_path
from server.documents import Document
from server.errors import ModelDefect


class Emulate(BaseModel):
    """What the emulated backend stands in for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str = Field(default="t4", max_length=255, description="Published latencies: t4, or a .yaml file of that form beside model.yaml.")
    model: str = Field(max_length=128, description="A model of the table.")
    precision: str = Field(default="fp32", max_length=32, description="One of that model's precisions in the table.")
    precisions: tuple[str, ...] = Field(
        default=(), max_length=8, description="Those of them that the version has, where it's more than one; default `precision` alone."
    )
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="Of the noise.")
    noise: bool = Field(default=True, description="Whether run times vary as the table's noise says.")

    @property
    def have(self) -> tuple[str, ...]:
        """The version's precisions, that first which serves unless another is asked for."""
        first = self.precision if "precision" in self.model_fields_set or not self.precisions else self.precisions[0]
        return first, *(name for name in self.precisions if name != first)

    def options(self, table: Path, precision: str) -> Mapping[str, Any]:
        """What the backend is opened with for one of its precisions, by the table's whole path."""
        return {**self.model_dump(exclude={"precisions"}), "precision": precision, "table": str(table)}


def note(curve: Curve) -> str:
    """What everyone is told who might take an emulated device for one."""
    what = f"{curve.model} {curve.precision}"
    return f"emulated {curve.device}: the times of {what} are a published table's; nothing was measured and nothing is computed"


def table_of(document: Document, emulate: Emulate) -> Path:
    """The table's file. Raises ModelDefect with the line of `emulate.table`."""
    try:
        return table_path(emulate.table, document.path.parent)
    except ValueError as error:
        raise document.error(("emulate", "table"), str(error)) from error


def curves_of(document: Document, emulate: Emulate, table: Path) -> dict[str, Curve]:
    """The figures that `emulate` names, by precision. Raises ModelDefect with the line in model.yaml, and that in the table."""
    found = read_table(table, ModelDefect)
    try:
        return {precision: found.curve(emulate.model, precision) for precision in emulate.have}
    except ModelDefect as error:
        raise document.error(("emulate",), str(error)) from error
