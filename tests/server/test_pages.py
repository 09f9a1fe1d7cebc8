from pathlib import Path

import pytest

from tests.server.pages import DOCS, PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS.parent)))
def test_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "write it anew: python -m tests.server.pages"
