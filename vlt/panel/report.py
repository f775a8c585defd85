"""A run as one file for a browser: offline, with the same front end as the probe."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vlt.errors import VltError, write_whole
from vlt.panel import pictures, switches
from vlt.probe import edits, paths
from vlt.probe import sweep as sweeping
from vlt.probe.trace import Trace

HERE = Path(__file__).parent
METHODS = ("integrated_gradients", "relevance")
PLAYED = 2**20  # bytes of a file that go into the page
# Nothing is fetched, sent or embedded but what the page itself holds.
_POLICY = "default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: light-dark(#fff, #1c1c1c); }}
.vlt {{ margin: 0 auto; }}
{style}
</style>
</head>
<body>
<noscript><p>{title}: {answer}</p></noscript>
<main id="probe"></main>
<script type="application/json" id="run">{data}</script>
<script type="module">
{script}
// What the notebook's panel asks Python for, this page has already.
const all = JSON.parse(document.getElementById("run").textContent);
const listeners = {{}};
const model = {{
  get: (name) => all[name],
  on: (name, then) => (listeners[name] = then),
  off: (name) => delete listeners[name],
  send: (told) => {{
    const number = told.word ?? all.view.word?.number; // "explain" tells a word, "method" none
    const word = number === undefined ? null : {{ number, edited: false }};
    all.view = {{ ...all.view, method: told.method, word, heat: all.page.heats[`${{number}} ${{told.method}}`] ?? null }};
    listeners["change:view"]();
  }},
}};
render({{ model, el: document.getElementById("probe") }});
</script>
</body>
</html>
"""


def save_html(
    run: Trace, path: str | Path, methods: Sequence[str] | None = None, sweep: bool = True, progress: bool = True
) -> None:
    """Writes a run as one HTML file, which opens offline: frames and spectrogram with heat for every word of the answer by
    each of the methods (of `vlt.attribute`; by default integrated gradients, and relevance where the run's edits leave it
    something to follow), what becomes of the answer without parts (sweep), and the stages.

    A file that browsers play, of at most 1 MiB, goes into it. Every word costs as much as `vlt.attribute` at both
    branches. Raises `VltError` for an unknown method, and where the file cannot be written.
    """
    methods = usual(run) if methods is None else methods
    for method in methods:
        pictures.check_method(method)
    if not methods:
        raise VltError(f"no method was given; some: {', '.join(METHODS)}")
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise VltError(f"{path}: a page is saved as .html")
    if not Path(path).absolute().parent.is_dir():
        raise VltError(f"{path}: give a file in a folder that exists")
    write_whole(Path(path), page(run, methods, sweep, progress))


def usual(run: Trace) -> list[str]:
    """The methods that tell something of this run."""
    try:
        paths.check_carried(run)
    except VltError:
        return [method for method in METHODS if method != "relevance"]
    return list(METHODS)


def page(run: Trace, methods: Sequence[str], sweep: bool = True, progress: bool = True) -> str:
    """The HTML that `save_html` writes."""
    said = pictures.said(run)
    swept = _swept(run, progress) if sweep else []
    words = [i for i, token in enumerate(said["tokens"]) if any(c.isalnum() for c in token["text"])]
    heats = {}
    with tqdm(total=len(words) * len(methods), desc="heat", disable=not progress, leave=False) as bar:
        for word in words:
            for method in methods:
                heats[f"{word} {method}"] = pictures.heat(run, word, method)
                bar.update()
    stages = [
        {
            "stage": name,
            "axes": row["axes"],
            "shape": list(row["shape"]),
            "ms": 1000 * row["seconds"] or None,
        }  # none: taken over
        for name, row in run.stages().iterrows()
    ]
    data, kind = pictures.media(run.clip.path, PLAYED)
    media = f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else ""
    least = min(words, key=lambda i: said["tokens"][i]["p"], default=None)  # what the model was least sure of comes first
    first = None if least is None else {"number": least, "edited": False}
    view: dict[str, Any] = {
        "question": run.question,
        "answer": said,
        "edited": None,
        "switches": {**switches.ALL_ON, **{branch: branch in run.prompt.branches for branch in ("video", "audio")}},
        "edits": _as_json(run),
        "word": first,
    }
    told: dict[str, Any] = {
        "shown": {**pictures.shown(run), "methods": list(methods), "media": kind},
        "view": {**view, "method": methods[0], "heat": heats.get(f"{least} {methods[0]}")},
        "status": {"busy": False, "what": "", "done": None, "said": "", "error": ""},
        "page": {"heats": heats, "stages": stages, "sweep": swept, "media": media, "edits": [str(edit) for edit in run.edits]},
    }
    return _PAGE.format(
        policy=_POLICY,
        title=html.escape(f"{pictures.name_of(run.clip.path)}: {run.question}"),
        answer=html.escape(run.answer.text),
        style=(HERE / "front.css").read_text(encoding="utf-8"),
        script=(HERE / "front.js").read_text(encoding="utf-8"),
        # a JSON text in HTML ends at "</": no "<" is left in it
        data=json.dumps(told, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )


def _as_json(run: Trace) -> list[Any]:
    """The edits in force; as text where they cannot be saved."""
    try:
        return list(json.loads(edits.dumps(run.edits)))
    except VltError:
        return [str(edit) for edit in run.edits]


def _swept(run: Trace, progress: bool) -> list[dict[str, Any]]:
    variants = sweeping.possible(run)
    table = sweeping.sweep(run, variants, progress=progress)
    table["cut"] = table.pop("ended") != "stop"
    rows = table[["answer", "same", "cut", "logprob", "change"]].reset_index(names="name").to_dict("records")
    out = [{"edit": str(variants.get(row["name"], "")), **{str(key): value for key, value in row.items()}} for row in rows]
    out[0]["name"] = "as above" if run.edits else out[0]["name"]
    return out
