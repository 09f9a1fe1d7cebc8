"""Repository entries of the user's own Python code, for tests."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

NUMBERS = """backend: python
python: {code: model.py:Model}
inputs: {x: {dtype: FP32, shape: [-1, 2]}}
outputs: {y: {dtype: FP32, shape: [-1, 2]}}
"""
TEXTS = """backend: python
python: {code: model.py:Model}
inputs: {text: {dtype: BYTES, shape: [-1, 1]}}
outputs: {text: {dtype: BYTES, shape: [-1, 1]}}
"""
DOUBLE = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'] * 2}\n"


def place_python(repository: Path, name: str, code: str = DOUBLE, yaml: str = NUMBERS) -> Path:
    """repository/NAME/model.yaml and NAME/1/model.py. Returns repository/NAME."""
    entry = repository / name
    (entry / "1").mkdir(parents=True)
    (entry / "model.yaml").write_text(yaml)
    (entry / "1" / "model.py").write_text(dedent(code))
    return entry
