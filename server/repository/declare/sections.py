"""The sections of model.yaml for models that are more than a file: Python classes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PythonCode(_Section):
    """Which class stands for a model."""

    code: str = Field(
        pattern=r"^[^/:]+\.py:[A-Za-z_][A-Za-z0-9_]*$",
        max_length=255,
        description="`FILE.py:Class`; the file lies in the version's folder or beside model.yaml.",
    )
    options: dict[str, Any] = Field(default={}, description="For the class: `context.options` of its `load`.")
