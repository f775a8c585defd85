"""Looking: `vlt probe`, `vlt stages`, `vlt sweep`."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vlt.cli import terminal
from vlt.errors import VltError, write_whole
from vlt.model import box

# Those of vlt.probe.sweep, which takes seconds to import.
ABLATIONS = (
    "video, audio, blank, mute, frame_position, segment_position, reverse, shuffle, one_frame, image_queries, frame_tokens, "
    "video_prefix, audio_features, segment_tokens, audio_prefix, question"
)

if TYPE_CHECKING:
    import pandas as pd

    from vlt.inputs.clip import Clip
    from vlt.model.answer import Answer
    from vlt.model.video_llama import VideoLlama


def probe(
    clip: Annotated[Path, typer.Argument(help="A video, picture or sound file.", show_default=False)],
    ask: Annotated[str, typer.Option(help="The question.")] = "What do you see, and what do you hear?",
    model: Annotated[str, typer.Option(help="'box', a converted folder, or a hub name.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result here.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page here: heat by word, what hangs on what.", show_default=False)
    ] = None,
    branch: Annotated[list[str] | None, typer.Option(help="Use only this branch: video or audio.", show_default=False)] = None,
    coverage: Annotated[
        str | None,
        typer.Option(help="Where sound is heard: original or whole; the model's way if not given.", show_default=False),
    ] = None,
    n_frames: Annotated[
        int | None, typer.Option(help="Frames to look at; as in training if not given.", show_default=False)
    ] = None,
    sample: Annotated[bool, typer.Option(help="Draw the answer instead of taking the likeliest words.")] = False,
    seed: Annotated[int | None, typer.Option(help="For --sample; 0 if not given.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 300,
) -> None:
    """What a clip holds, what becomes of it stage by stage, and the answer to a question about it."""
    terminal.check_file(json_file)
    terminal.check_page(html)
    if seed is not None and not sample:
        raise VltError(f"--seed {seed}: nothing is drawn without --sample")
    if json_file is not None and json_file.exists() and clip.exists() and json_file.samefile(clip):
        raise VltError(f"--json {json_file}: is the clip itself; give another file")
    with terminal.progress() as bar:
        task = bar.add_task("opening the clip")
        from vlt.inputs.clip import Clip
        from vlt.model.load import load

        opened = Clip(clip)
        description = opened.describe()
        bar.update(task, description=f"opening the model {escape(model)!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's note is part of the result below
            loaded = load(model)
        options = {"branches": branch or None, "n_frames": n_frames, "coverage": coverage}
        rows, prompt, soft = _stage_rows(loaded, opened, ask, options, lambda s: bar.update(task, description=s))
        bar.update(task, description="answering")
        drawn = 0 if sample and seed is None else seed
        answer = loaded.generate_from([prompt], [soft], sample=sample, seed=drawn, max_new_tokens=max_new_tokens)[0]
    note = loaded.config.note or box.limits(model, clip, ask)
    result = {
        "clip": description,
        "question": ask,
        "model": model,
        "note": note,
        "stages": rows,
        "answer": answer.text,
        "ended": answer.ended,
        "tokens": list(answer.tokens),
    }
    if json_file is not None:
        write_whole(json_file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _print_probe(description, rows, answer, note)
    if html is not None:
        _save_page(html, loaded, opened, ask, options, answer if sample else None, max_new_tokens)


def _save_page(
    path: Path, model: VideoLlama, clip: Clip, question: str, options: dict[str, Any], drawn: Answer | None, length: int
) -> None:
    from vlt.panel.report import save_html
    from vlt.probe.trace import trace

    said = None if drawn is None else drawn.text
    run = trace(model, clip, question, answer=said, max_new_tokens=length, **options)
    save_html(run, path, progress=terminal.err.is_terminal)


def _stage_rows(
    model: VideoLlama, clip: Clip, question: str, options: dict[str, Any], on_step: Any
) -> tuple[list[dict[str, Any]], Any, dict[str, Any]]:
    """Runs every stage that this clip has, once; (a row for each, the prompt, the branches' soft tokens)."""
    import torch

    from vlt.model.stages import STAGES

    given, chosen = model.inputs(clip, **options)
    prompt = model.prompt(clip, question, branches=chosen, n_frames=options["n_frames"])
    rows: list[dict[str, Any]] = []

    def on_stage(name: str, value: Any, seconds: float) -> None:
        on_step(f"stage {name}")
        axes = STAGES[name].axes
        shape = list(value.shape) if axes else []
        rows.append({"name": name, "shape": shape, "axes": list(axes), "ms": round(seconds * 1000, 3)})

    for name, (value, seconds) in given.items():
        on_stage(name, value, seconds)
    prefixes = [f"{branch}_prefix" for branch in chosen]
    with torch.no_grad():
        values = {name: value for name, (value, _) in given.items()}
        done = model.run({**values, "prompt": prompt}, [*prefixes, "logits"], on_stage)
    order = list(STAGES)
    rows.sort(key=lambda row: order.index(row["name"]))
    return rows, prompt, {branch: done[f"{branch}_prefix"][0] for branch in chosen}


def _print_probe(description: dict[str, Any], rows: list[dict[str, Any]], answer: Answer, note: str) -> None:
    sound = description["sound"]
    heard = f"{sound['seconds']} s, {sound['rate']} Hz, {sound['channels']} channels" if "seconds" in sound else sound["state"]
    size = f", {description['size'][0]} x {description['size'][1]} pixels" if description["size"] else ""
    rate = f" at {description['fps']} per second" if description["fps"] else ""
    path = escape(terminal.printable(description["path"]))
    terminal.out.print(
        f"[bold]clip[/bold]    {path}: {description['kind']}, {description['seconds']} s",
        highlight=False,
    )
    terminal.out.print(f"        frames: {description['frames']}{rate}{size}; sound: {heard}", highlight=False)
    table = Table("stage", "shape", "axes", "ms", box=None, pad_edge=False, header_style="bold")
    table.columns[3].justify = "right"
    for row in rows:
        table.add_row(row["name"], " x ".join(map(str, row["shape"])), ", ".join(row["axes"]), f"{row['ms']:.1f}")
    terminal.out.print(table)
    terminal.note(note)
    ended = "" if answer.ended == "stop" else f"  [dim](cut off after {len(answer.ids)} tokens)[/dim]"
    terminal.out.print(f"[bold]answer[/bold]  {escape(terminal.printable(answer.text))}{ended}", highlight=False)


def stages(
    model: Annotated[str, typer.Option(help="Whose sizes to show: 'box', a converted folder, or a hub name.")] = "box",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """The table of stages: what each is, its axes, and what it is computed from."""
    from vlt.model.load import load_config
    from vlt.model.stages import STAGES, describe

    axes = describe(load_config(model))
    if as_json:
        rows = [
            {"name": s.name, "about": s.about, "axes": list(s.axes), "sizes": axes.get(s.name, ""), "needs": list(s.needs)}
            for s in STAGES.values()
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("stage", "what it is", "axes", "from", box=None, pad_edge=False, header_style="bold")
    for s in STAGES.values():
        table.add_row(s.name, s.about, axes.get(s.name, ""), ", ".join(s.needs))
    terminal.out.print(table)


def sweep(
    clip: Annotated[Path, typer.Argument(help="A video, picture or sound file.", show_default=False)],
    ask: Annotated[str, typer.Option(help="The question.")] = "What do you see, and what do you hear?",
    ablate: Annotated[
        str | None, typer.Option(help=f"What is taken away, one by one: names with commas, of {ABLATIONS}.", show_default=False)
    ] = None,
    edits: Annotated[
        list[Path] | None,
        typer.Option(help="A JSON file of edits (vlt.edits.dumps).", show_default=False),
    ] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="Another answer to be scored.", show_default=False)] = None,
    model: Annotated[str, typer.Option(help="'box', a converted folder, or a hub name.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table here.", show_default=False)] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw it here (png, svg or pdf).", show_default=False)] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Add results here as they come; called again, go on from there.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Runs that are computed together.", min=1)] = 16,
) -> None:
    """What becomes of an answer when parts of the clip or of the model are taken away, one by one."""
    for path in (json_file, keep):
        terminal.check_file(path)
    terminal.check_figure(figure)
    from vlt.inputs.clip import Clip
    from vlt.model.load import load
    from vlt.probe import edits as saved
    from vlt.probe import sweep as sweeping
    from vlt.probe.trace import trace

    files = {path.stem: saved.read(path) for path in edits or []}
    named = None if ablate is None else sweeping.ablations([name.strip() for name in ablate.split(",")])
    run = trace(load(model), Clip(clip), ask)
    variants = named if named is not None else {} if files else sweeping.possible(run)
    if both := set(variants) & set(files):
        raise VltError(f"two variants are named {both.pop()!r}; name the file otherwise")
    whole: dict[str, Any] = {**variants, **files}
    bar = terminal.err.is_terminal
    rows = sweeping.sweep(run, whole, candidates=candidate or (), keep=keep, batch=batch, progress=bar)
    done = {name: "; ".join(map(str, saved.as_list(found))) for name, found in whole.items()}
    _print_sweep(rows, done, candidate or [])
    terminal.note(box.limits(model, clip, ask))
    terminal.out.print("log p: of the unedited run's answer, natural logarithm", style="dim", highlight=False)
    if json_file is not None:
        told = [{"edits": done.get(row["name"], "")} | row for row in rows.reset_index().to_dict("records")]
        result = {"clip": str(clip), "question": ask, "model": model, "sweep": told}
        write_whole(json_file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if figure is not None:
        from vlt.view import figures

        figures.save(figures.sweep(rows), figure)


def _print_sweep(rows: pd.DataFrame, done: Mapping[str, str], candidates: Sequence[str]) -> None:
    """done: variant -> its edits."""
    table = Table("", "edit", "answer", "log p", "change", *map(escape, candidates), box=None, header_style="bold")
    for name, row in rows.iterrows():
        said = escape(textwrap.shorten(terminal.printable(row["answer"]), 200, placeholder=" ..."))
        numbers = [f"{row['logprob']:.3f}", f"{row['change']:+.3f}", *(f"{row[c]:.3f}" for c in candidates)]
        edit = escape(terminal.printable(done.get(str(name), "")))
        table.add_row(escape(str(name)), edit, said if row["same"] else f"[bold]{said}[/bold]", *numbers)
    terminal.out.print(table)
