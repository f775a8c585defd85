"""Runs notebooks and renders them: `python notebooks/pages.py [NAME ...]` writes notebooks/pages/NAME.html."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode

HERE = Path(__file__).parent
VIEW = "application/vnd.jupyter.widget-view+json"


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
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if VIEW not in out.get("data", {})]
    from_elsewhere = ("mathjax", "require_js", "jquery", "mermaid_js", "mermaid_layout_elk_js")
    exporter = HTMLExporter(**{f"{name}_url": "" for name in from_elsewhere})
    return exporter.from_notebook_node(notebook)[0]


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
