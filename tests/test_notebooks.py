"""Every notebook runs from top to bottom, and what it claims is true; its page is whole; its source is kept without outputs."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
import pytest
from pages import executed, page, title  # notebooks/pages.py, which `make pages` runs

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_its_claims_hold(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # faster than more on a model so small
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = executed(path)
    texts = [str(out) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [text for text in texts if "'name': 'stderr'" in text and "Warning" in text]
    rendered = page(notebook)
    assert f"<title>{html.escape(title(notebook), quote=False)}</title>" in rendered.replace("&quot;", '"').replace(
        "&#39;", "'"
    )
    pictures = re.findall(r"<img[^>]*>", rendered)
    assert not [picture for picture in pictures if not re.search(r'alt="(?!No description)[^"]{20}', picture)]
    assert not re.search(r"""(src|import|from)[ =(]+["']https?:""", rendered)  # nothing is asked for from elsewhere


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_as_source(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert any("assert " in cell.source for cell in code)  # it claims something
    assert notebook.cells[0].source.startswith("# ") and "## To think about" in notebook.cells[-1].source
    assert re.findall(r"(?m)^(\d)\. ", notebook.cells[-1].source.split("## To think about")[1]) == ["1", "2", "3"]
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_ten_in_reading_order() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02d}_" for i in range(1, 11)]
