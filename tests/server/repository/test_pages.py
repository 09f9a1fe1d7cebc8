from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.repository.model_config import model_schema
from tests.server.repository.pages import DOCS, PAGES
from tests.server.repository.test_model_config import FULL


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "write it anew: python -m tests.server.repository.pages"


def test_the_schema_takes_what_the_server_takes() -> None:
    jsonschema.Draft202012Validator.check_schema(model_schema())
    jsonschema.validate(yaml.safe_load(FULL), model_schema())


@pytest.mark.parametrize(
    "wrong", [{"batchin": {}}, {"batching": {"max_rows": 0}}, {"lanes": {"kind": "fibre"}}, {"versions": {"policy": "some"}}]
)
def test_the_schema_refuses_what_the_server_refuses(wrong: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, model_schema())
