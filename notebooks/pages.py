"""Runs notebooks and renders them: `python notebooks/pages.py [NAME ...]` writes notebooks/pages/NAME.html."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode

HERE = Path(__file__).parent
VIEW = "application/vnd.jupyter.widget-view+json"
PNG = "image/png"
# What is too long scrolls, and outputs break between words.
STYLE = """.jp-InputArea-editor, .jp-RenderedText { overflow-x: auto; }
.jp-RenderedText pre { word-break: normal !important; overflow-wrap: anywhere; }"""


def executed(path: Path, timeout: int = 300) -> NotebookNode:
    """The notebook with its outputs; what a widget draws at first stands among its cell's. timeout: seconds for a cell."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )
    # nbclient answers each output inside a widget through the socket on which it waits for the end of the cell; where both
    # come at the same moment it waits for ever (jupyter/nbclient issue 312). And what it hides in a widget no page shows.
    client.widget_registry = {}
    return client.execute()


def page(notebook: NotebookNode) -> str:
    """As HTML that asks for nothing from elsewhere: without the widgets' handles, which need their kernel."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title(notebook)
    moves: set[str] = set()  # cells whose pictures a reader of the notebook can change
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [out for out in cell.outputs if VIEW not in out.get("data", {})]
            if len(shown) < len(cell.outputs) and any(
                PNG in out.get("data", {}) for out in shown
            ):
                moves |= {cell.id}
            cell.outputs = shown
    notebook.cells = [part for cell in notebook.cells for part in (cell, *_still(cell, moves))]
    from_elsewhere = ("mathjax", "require_js", "jquery", "mermaid_js", "mermaid_layout_elk_js")
    exporter = HTMLExporter(**{f"{name}_url": "" for name in from_elsewhere})
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    soup.head.append(BeautifulSoup(f"<style>{STYLE}</style>", "html.parser"))
    # The template is told what figures show, and does not tell it.
    said, text = {}, ""
    for cell in notebook.cells:
        text = cell.source if cell.cell_type == "markdown" else text
        for out in cell.get("outputs", []):
            if PNG in out.get("data", {}):
                told = out.get("metadata", {}).get(PNG, {}).get("alt")
                said[_bare(out["data"][PNG])] = told or _labels(cell, text)
    for image in soup.select("img[src]"):
        image["alt"] = said.get(_bare(image["src"].partition(",")[2]), image["alt"])
    return str(soup)


def title(notebook: NotebookNode) -> str:
    """Of the lesson, as plain text."""
    return notebook.cells[0].source.removeprefix("# ").split("\n")[0].replace("*", "")


def _still(cell: NotebookNode, moves: set[str]) -> list[NotebookNode]:
    note = "*On this page it stands still; in the notebook it follows what you choose.*"
    return [nbformat.v4.new_markdown_cell(note)] if cell.id in moves else []


def _labels(cell: NotebookNode, text: str) -> str:
    """What a picture that a lesson draws by hand says of itself: its titles and labels, or what the text before it ends with."""
    found = re.findall(r'(?:title|label)\(\s*f?"([^"]+)"', cell.source)
    plain = [re.sub(r"\{[^}]*\}", "...", name).replace("\\n", " ") for name in found]
    plain = [
        name for name in plain if len(re.findall("[a-z]", name)) > 3
    ]  # "... s" tells nothing
    ends = re.split(r"(?<=[.!?:])\s", text.replace("*", "").replace("`", "").strip())[-1]
    return f"Drawn by the code above: {'; '.join(plain) or ends}"


def _bare(text: str) -> str:
    return "".join(text.split())


def main() -> None:
    (HERE / "pages").mkdir(exist_ok=True)
    for path in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            print(path.stem, flush=True)
            (HERE / "pages" / f"{path.stem}.html").write_text(
                page(executed(path)), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
