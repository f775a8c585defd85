"""`vlt explain`: heat on what was seen, heard and asked, how true it is, as figures and numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vlt.cli import terminal
from vlt.errors import VltError, write_whole
from vlt.model import box

if TYPE_CHECKING:
    from vlt.explain.attribution import Attribution
    from vlt.explain.faithfulness import Faithfulness


USUAL, OF_PARTS = "integrated_gradients", "shapley_sampling"  # frames and words that are half there tell little of whole ones
# How coordinates of the hottest place are told; the file has all.
_TOLD = {
    "frame": "frame {}",
    "segment": "segment {}",
    "seconds": "at {:.1f} s",
    "height": "pixel row {}",
    "width": "column {} of the model's picture",
    "hz": "{:.0f} Hz",
    "patch_row": "patch row {:.0f}",
    "patch_column": "column {:.0f}",
    "image_query": "image query {}",
    "video_query": "video query {}",
    "audio_query": "audio query {}",
    "token": "token {}",
    "word": "{!r}",
    "group": "{}",
    "query": "query {}",  # -1 of words
}
_LEGEND = (
    "\ndeletion: mean score as the hottest places are taken away, low is good; insertion: as they are put in, high is good; in "
    "brackets of random maps. true: insertion less deletion is more than that of random maps, and of this one moved elsewhere; "
    "p: the chance that such a map does as well, at most 0.05 where it is true (see vlt.faithfulness); as wholes: "
    "so of whole frames, or segments."
)


def explain(
    clip: Annotated[Path, typer.Argument(help="A video, picture or sound file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder for figures and numbers.", show_default=False)],
    ask: Annotated[str, typer.Option(help="The question.")] = "What do you see, and what do you hear?",
    at: Annotated[
        list[str] | None,
        typer.Option(help="A stage, or 'parts'; if not given parts, frames and spectrograms.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="A wrong one lists all; if not given integrated_gradients, at parts shapley_sampling.", show_default=False
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the method, as n_samples=100; a wrong one lists all.", show_default=False)
    ] = None,
    target: Annotated[str, typer.Option(help="'answer', or a word of it.")] = "answer",
    rather: Annotated[
        str | None, typer.Option(help="The word that the target is said rather than.", show_default=False)
    ] = None,
    baseline: Annotated[str, typer.Option(help="What a place is without its content: blank, zero or mean.")] = "blank",
    smooth: Annotated[
        float, typer.Option(help="Heat on pictures averaged with its neighbours' over so many patches; 0: not.", min=0)
    ] = 0.0,
    controls: Annotated[
        int, typer.Option(help="Maps that know nothing, to measure beside, 19 at least; 0 measures nothing.", min=0)
    ] = 20,
    shaken: Annotated[
        int, typer.Option(help="Runs of the method under a little noise, to measure sensitivity by; 0 measures none.", min=0)
    ] = 0,
    model: Annotated[str, typer.Option(help="'box', a converted folder, or a hub name.")] = "box",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0, max=2**32 - 1)] = 0,
    batch: Annotated[int, typer.Option(help="Changed copies that are computed together.", min=1)] = 16,
) -> None:
    """Which of what it saw, heard and read made it say that: heat, and how true of the model that is."""
    _check_folder(out := out.absolute())
    _check_asked(target, rather, method, at or ["prefix"], baseline, controls, shaken)
    options = _options(option or [], method, at or ["frames", *["parts"] * (not _without_parts(method, baseline, shaken))])
    from vlt.explain.attribution import attribute
    from vlt.inputs.clip import Clip
    from vlt.model.load import load
    from vlt.probe.trace import trace

    run = trace(load(model), Clip(clip), ask)
    places = list(dict.fromkeys(at or _usual(method, run.prompt.branches, baseline, shaken)))
    blurred = _pictures(places, smooth)
    wanted: Any = (target, rather) if rather is not None else target
    found = []
    shared: dict[str, Any] = {"baseline": baseline, "seed": seed, "batch": batch, "progress": terminal.err.is_terminal}
    for place in places:
        own = options[_by(method, place)] | {"smooth": smooth if place in blurred else 0.0}
        heat = attribute(run, place, _by(method, place), wanted, **shared, **own)
        found.append((heat, *_measured(heat, controls, shaken, seed)))
    rows = [row for *_, row in found]
    told = {"clip": str(clip), "question": ask, "answer": run.answer.text, "model": model, "target": wanted, "heat": rows}
    _write(out, found, told)
    terminal.note(box.limits(model, clip, ask))
    _print(run.answer.text, rows)
    terminal.out.print(f"{out}: figures and numbers", highlight=False, markup=False, soft_wrap=True)


def _check_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VltError(f"{out}: exists, and is not an empty folder; give a new one")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise VltError(f"{out.parent}: is no folder that can be written in")


def _check_asked(
    target: str, rather: str | None, method: str | None, at: Sequence[str], baseline: str, controls: int, shaken: int
) -> None:
    from vlt.explain.attribution import check_method
    from vlt.explain.faithfulness import check_controls
    from vlt.explain.scorer import check_baseline

    check_baseline(baseline)
    if rather is not None and target == "answer":
        raise VltError(f"--rather {rather} wants a word that is said rather: add --target WORD")
    if controls:
        check_controls(controls)
    elif shaken:
        raise VltError(f"--shaken {shaken}: nothing is measured with --controls 0")
    for place in at:
        check_method(_by(method, place), place)


def _by(method: str | None, place: str) -> str:
    return method or (OF_PARTS if place == "parts" else USUAL)


def _options(told: Sequence[str], method: str | None, places: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each method those that it takes; what none takes is refused."""
    from vlt.explain.attribution import METHODS
    from vlt.explain.methods import check_options, options_of

    out: dict[str, dict[str, Any]] = {_by(method, place): {} for place in places}
    for text in told:
        name, _, value = text.partition("=")
        try:
            known = {name: json.loads(value)}
        except ValueError:
            raise VltError(f"--option {text}: expected NAME=VALUE, as n_samples=100") from None
        takes = [by for by in out if name in options_of(METHODS[by])]
        if not takes:
            has = "; ".join(f"{by} has {', '.join(options_of(METHODS[by])) or 'none'}" for by in out)
            raise VltError(f"--option {text}: no such option; {has}")
        for by in takes:
            check_options(METHODS[by], known)
            out[by] |= known
    return out


def _usual(method: str | None, branches: Sequence[str], baseline: str, shaken: int) -> list[str]:
    from vlt.explain.attribution import places_of

    features = method == "grad_cam"
    own = {"video": "patches" if features else "frames", "audio": "audio_features" if features else "spectrograms"}
    if why := _without_parts(method, baseline, shaken):
        terminal.note(f"parts are left out: {why}")
    places = [*([] if why else ["parts"]), *(own[b] for b in own if b in branches)]
    return [at for at in places if at in places_of(_by(method, at))]


def _without_parts(method: str | None, baseline: str, shaken: int) -> str:
    """Why there is nothing to be told of parts; mostly nothing."""
    from vlt.explain.attribution import READ_ATTENTION, places_of

    if baseline != "blank":
        return f"they have no --baseline {baseline}"
    if method and "parts" not in places_of(method):
        return f"{method} has no heat there"
    return f"--shaken changes what {method} reads from, and not them" if shaken and method in READ_ATTENTION else ""


def _pictures(places: Sequence[str], smooth: float) -> set[str]:
    pictures = {"frames", "patches"} & set(places)
    if smooth and not pictures:
        raise VltError(f"--smooth {smooth}: there is no heat on pictures at {', '.join(places)}; add --at frames or patches")
    return pictures


def _measured(heat: Attribution, controls: int, shaken: int, seed: int) -> tuple[Faithfulness | None, dict[str, Any]]:
    """How true it is, if that is asked for, and all that is told of it."""
    if not controls:
        return None, _row(heat, None)
    from vlt.explain.faithfulness import faithfulness

    shown = terminal.err.is_terminal
    truth = faithfulness(heat, controls=controls, samples=shaken, seed=seed, progress=shown)
    row = _row(heat, truth)
    whole = {str(name): size for name, size in list(heat.heat.sizes.items())[1:]}
    if whole and len(heat.heat) >= 4:  # a map can be true of segments, and not of the mel cells in them
        again = faithfulness(heat, cells=whole, controls=controls, seed=seed, progress=shown)
        row |= {f"true of whole {heat.heat.dims[0]}s": again.true, "p of them": again.p}
        if again.true != truth.true:
            verdict = "it is shown, but not where in them" if again.true else "it is not shown"
            row["warnings"].append(f"Of whole {heat.heat.dims[0]}s {verdict} (p = {again.p:.2g}).")
    return truth, row


def _write(out: Path, found: Sequence[tuple[Attribution, Faithfulness | None, Any]], told: dict[str, Any]) -> None:
    from vlt.view import figures

    out.mkdir(exist_ok=True)
    for heat, truth, _ in found:
        figures.save(heat.figure(truth), out / f"{heat.at}.png")
        if truth is not None:
            figures.save(truth.figure(), out / f"{heat.at}-faithfulness.png")
        write_whole(out / f"{heat.at}.csv", heat.heat.rename("heat").to_dataframe().to_csv())
    write_whole(out / "explanation.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _row(heat: Attribution, truth: Faithfulness | None) -> dict[str, Any]:
    top = heat.heat.isel(heat.heat.argmax(...))
    hottest = {name: value.values.tolist() for name, value in top.coords.items() if value.values.tolist() not in ("", None)}
    row = {
        "at": heat.at,
        "method": heat.method,
        "baseline": heat.baseline,
        "score": heat.score,
        "score_without": heat.score_without,
        "error": None if heat.error != heat.error else heat.error,
        "noise": None if heat.noise != heat.noise else heat.noise,
        "warnings": heat.warnings,
        "hottest": {name: value for name, value in hottest.items() if value == value},
        "alike": int((heat.heat == heat.heat.max()).sum()),
        "forwards": heat.forwards,
        "backwards": heat.backwards,
        "seconds": round(heat.seconds, 3),
    }
    if truth is not None:
        row |= {"faithfulness": truth.table.to_dict("index"), "beats": truth.beats, "true": truth.true, "p": truth.p}
        row["warnings"] = [*heat.warnings, *([truth.warning] if truth.warning else [])]
    return row


def _print(answer: str, rows: list[dict[str, Any]]) -> None:
    terminal.out.print(f"[bold]answer[/bold]  {escape(terminal.printable(answer))}", highlight=False)
    measured = ["deletion (random)", "insertion (random)", "true", "as wholes"] if "faithfulness" in rows[0] else []
    table = Table("at", "method", "hottest", "score", "without", *measured, box=None, header_style="bold")
    for row in rows:
        cells = [_two(row["score"]), _two(row["score_without"])]
        if measured:
            found = row["faithfulness"]
            cells += [f"{_two(found[m]['value'])} ({_two(found[m]['random'])})" for m in ("deletion", "insertion")]
            whole = [
                f"{_yes(true)}, p {row['p of them']:.2f}" for name, true in row.items() if name.startswith("true of whole ")
            ]
            cells += [f"{_yes(row['true'])}, p {row['p']:.2f}", *whole]
        table.add_row(
            row["at"], row["method"].replace("_", " "), escape(terminal.printable(_where(row["hottest"], row["alike"]))), *cells
        )
    terminal.out.print(table)
    if measured:
        terminal.out.print(_LEGEND, style="dim", highlight=False)
    for row in rows:
        for warning in row["warnings"]:
            terminal.out.print(f"[bold red]{row['at']}[/bold red]  {warning}", highlight=False, soft_wrap=True)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def _where(hottest: Mapping[str, Any], alike: int) -> str:
    """The hottest place, in words, and how many are as hot."""
    told = {name: value.strip() if isinstance(value, str) else value for name, value in hottest.items()}
    more = f" (the first of {alike} alike)" if alike > 1 else ""
    if told.get("kind") == "word":
        return f"word {told['number']}, {told['word']!r}{more}"
    if "part" in told:
        told = {told["kind"]: told["number"], "seconds": told["seconds"]}
    elif "segment_seconds" in told:
        told = {"segment": told["segment"], "seconds": told["start"] + told["segment_seconds"], "hz": told["hz"]}
    elif "start" in told:
        told["seconds"] = told["start"]
    elif "patch" in told and "patch_row" not in told:
        more = f", class token{more}"
    return ", ".join(_TOLD[name].format(value) for name, value in told.items() if name in _TOLD and value != -1) + more


def truth(
    clips: Annotated[int, typer.Option(help="How many fresh clips.", min=2)] = 40,
    seed: Annotated[int, typer.Option(help="Of the clips; the box was trained on those below 1000.", min=1000)] = 1000,
    way: Annotated[list[str] | None, typer.Option(help="Only this way; a wrong one lists all.", show_default=False)] = None,
    controls: Annotated[
        int, typer.Option(help="Random maps, to measure faithfulness beside, 19 at least; 0: only that is left out.", min=0)
    ] = 19,
    processes: Annotated[int, typer.Option(help="Clips that are explained at a time.", min=1, max=64)] = 1,
    model: Annotated[str, typer.Option(help="'box', or a folder that knows the small world.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.", show_default=False)] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw them here (png, svg or pdf).", show_default=False)] = None,
) -> None:
    """Do explanations point at the cause? In the small world it is known: methods x kinds of question, with checks."""
    terminal.check_file(json_file)
    terminal.check_figure(figure)
    from vlt.model.load import load
    from vlt.train import tables
    from vlt.train import truth as judged

    table = tables.summary(judged.maps(load(model), clips, seed, way or (), controls, processes))
    rows = [row.dropna().to_dict() for _, row in table.round(6).iterrows()]
    terminal.hand_out(tables.markdown(table), rows, json_file)
    if figure is not None:
        from vlt.view import figures

        figures.save(figures.truth(table), figure)
