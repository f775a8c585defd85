"""`vlt ...`: the command line. Results go to standard output; progress, warnings and errors to standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vlt.errors import VltError, write_whole

if TYPE_CHECKING:
    from vlt.inputs.clip import Clip
    from vlt.model.answer import Answer
    from vlt.model.video_llama import VideoLlama

app = typer.Typer(
    help="The Video-LLaMA toolkit: see into a model that watches and listens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
if not out.is_terminal:
    out = Console(width=140, emoji=False)  # into a file or a pipe: tables keep their lines


def main() -> None:
    """The entry point: what vlt refuses ends in one line and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except VltError as error:
        _say(f"vlt: {error}", "red")
        sys.exit(2)


def _say(text: str, style: str) -> None:
    # one line, whatever a file name holds
    err.print(_printable(" ".join(text.split())), style=style, markup=False, highlight=False, soft_wrap=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"note: {message}", "yellow")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


@app.command()
def probe(
    clip: Annotated[Path, typer.Argument(help="A video, picture or sound file.", show_default=False)],
    ask: Annotated[str, typer.Option(help="The question.")] = "What do you see, and what do you hear?",
    model: Annotated[str, typer.Option(help="'box', a converted folder, or a hub name.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result here.", show_default=False)] = None,
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
    _check_file(json_file)
    if json_file is not None and json_file.exists() and clip.exists() and json_file.samefile(clip):
        raise VltError(f"--json {json_file}: is the clip itself; give another file")
    with _progress() as progress:
        task = progress.add_task("opening the clip")
        from vlt.inputs.clip import Clip
        from vlt.model.load import load

        opened = Clip(clip)
        description = opened.describe()
        progress.update(task, description=f"opening the model {escape(model)!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's note is part of the result below
            loaded = load(model)
        options = {"branches": branch or None, "n_frames": n_frames, "coverage": coverage}
        rows, prompt, soft = _stage_rows(loaded, opened, ask, options, lambda s: progress.update(task, description=s))
        progress.update(task, description="answering")
        drawn = 0 if sample and seed is None else seed
        answer = loaded.generate_from([prompt], [soft], sample=sample, seed=drawn, max_new_tokens=max_new_tokens)[0]
    result = {
        "clip": description,
        "question": ask,
        "model": model,
        "note": loaded.config.note,
        "stages": rows,
        "answer": answer.text,
        "ended": answer.ended,
        "tokens": list(answer.tokens),
    }
    if json_file is not None:
        write_whole(json_file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _print_probe(description, rows, answer, loaded.config.note)


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
    out.print(
        f"[bold]clip[/bold]    {escape(_printable(description['path']))}: {description['kind']}, {description['seconds']} s",
        highlight=False,
    )
    out.print(f"        frames: {description['frames']}{rate}{size}; sound: {heard}", highlight=False)
    table = Table("stage", "shape", "axes", "ms", box=None, pad_edge=False, header_style="bold")
    table.columns[3].justify = "right"
    for row in rows:
        table.add_row(row["name"], " x ".join(map(str, row["shape"])), ", ".join(row["axes"]), f"{row['ms']:.1f}")
    out.print(table)
    if note:
        out.print(f"[bold yellow]note[/bold yellow]    {escape(note)}", highlight=False)
    ended = "" if answer.ended == "stop" else f"  [dim](cut off after {len(answer.ids)} tokens)[/dim]"
    out.print(f"[bold]answer[/bold]  {escape(_printable(answer.text))}{ended}", highlight=False)


def _printable(text: str) -> str:
    """Without control characters: an answer cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


@app.command()
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
    out.print(table)


@app.command()
def convert(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    vision: Annotated[Path, typer.Option(help="Vision-language branch (.pth).", show_default=False)],
    eva: Annotated[Path, typer.Option(help="eva_vit_g.pth.", show_default=False)],
    qformer: Annotated[Path, typer.Option(help="blip2_pretrained_flant5xxl.pth.", show_default=False)],
    llm: Annotated[Path, typer.Option(help="Folder of the language model, with its tokenizer.", show_default=False)],
    audio: Annotated[Path | None, typer.Option(help="Audio-language branch (.pth).", show_default=False)] = None,
    imagebind: Annotated[Path | None, typer.Option(help="imagebind_huge.pth; goes with --audio.", show_default=False)] = None,
    minigpt4: Annotated[Path | None, typer.Option(help="MiniGPT-4's projection (.pth).", show_default=False)] = None,
    sizes: Annotated[
        Path | None, typer.Option(help="JSON: what tensors do not tell, such as head counts.", show_default=False)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Chat format: vicuna or llama2; told from the language model if not given.", show_default=False),
    ] = None,
) -> None:
    """The original's published files -> one folder that `vlt.load` opens. Every key is used, or skipped for a reason."""
    with _progress() as progress:
        task = progress.add_task("starting")
        from vlt.model import checkpoints

        files = {"vision": vision, "audio": audio, "eva": eva, "qformer": qformer, "imagebind": imagebind, "minigpt4": minigpt4}
        told = checkpoints.read_sizes(sizes) if sizes else None
        report = checkpoints.convert(files, llm, output, told, template, lambda s: progress.update(task, description=s))
    table = Table("file", "tensors used", box=None, pad_edge=False, header_style="bold")
    for option, count in report.used.items():
        table.add_row(f"--{option}", str(count))
    out.print(table)
    for reason, keys in report.skipped.items():
        out.print(f"skipped {len(keys)}: {reason}", highlight=False, markup=False)
    for (first, later), count in report.overrides().items():
        out.print(f"--{later} overrides {count} tensors of --{first}", highlight=False, markup=False)
    if report.unused_sizes:
        out.print(f"not used from --sizes: {', '.join(report.unused_sizes)}", highlight=False, markup=False)
    how = "as asked" if template else "told from the language model; --template changes it"
    out.print(f"chat format: {report.template} ({how})", highlight=False, markup=False)
    out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


train_app = typer.Typer(help="Trains the model in the box, or one of the paper's four phases.", no_args_is_help=True)
app.add_typer(train_app, name="train")


@train_app.command("box")
def train_box(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0, max=99)] = 0,
    scale: Annotated[float, typer.Option(help="Of the number of steps; a small one only shows that it runs.")] = 1.0,
    work: Annotated[
        Path | None, typer.Option(help="For what is unfinished: OUT.work if not given.", show_default=False)
    ] = None,
) -> None:
    """The small model from nothing: eyes, image Q-Former, ImageBind, language model, then the four phases.

    Called again after it was cut off, it goes on where it was.
    """
    from vlt.train import box

    output, work = _check_output(output, work)
    table = Table("step", "steps", "loss, first", "last", "seconds", box=None, pad_edge=False, header_style="bold")
    for row in box.make(output, work, seed, scale):
        losses = f"{row['loss_first']:.3f}", f"{row['loss_last']:.3f}"
        table.add_row(row["name"], str(row["steps"]), *losses, f"{row['seconds']:.0f}")
    out.print(table)
    out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


def _check_output(output: Path, work: Path | None) -> tuple[Path, Path]:
    """OUT, which must be new, and the folder for what is unfinished."""
    output = output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise VltError(f"{output}: exists, and is not an empty folder; give a new one")
    work = output.with_name(f"{output.name}.work") if work is None else work
    for folder in (output.parent, work.absolute().parent):
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise VltError(f"{folder}: is no folder that can be written in")
    return output, work


def _train_phase(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    data: Annotated[list[Path], typer.Option(help="A file of captions or instructions; several may be given.")],
    media: Annotated[list[Path], typer.Option(help="The folder of its videos or pictures; one for each file.")],
    model: Annotated[str, typer.Option(help="What to start from: a folder, or a hub name.")],
    ratio: Annotated[list[int] | None, typer.Option(help="Share of each file's examples.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="The original's if not given.", min=1, show_default=False)] = None,
    batch: Annotated[int | None, typer.Option(help="Per device; the original's if not given.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0, max=2**32 - 1)] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read files.", min=0)] = 2,
    work: Annotated[Path | None, typer.Option(help="For checkpoints: OUT.work if not given.", show_default=False)] = None,
) -> None:
    import dataclasses

    import torch

    from vlt.model.load import load
    from vlt.train import recipe

    name = str(context.info_name)
    if len(data) != len(media) or (ratio and len(ratio) != len(data)):
        raise VltError(
            f"{len(data)} --data, {len(media)} --media and {len(ratio or [])} --ratio; give one of each for each file"
        )
    output, work = _check_output(output, work)
    sources = [recipe.Source(*row) for row in zip(data, media, ratio or [1] * len(data), strict=True)]
    schedule = recipe.PHASES[name].schedule
    if steps is not None:  # a shorter run keeps some steps at the full rate
        schedule = dataclasses.replace(schedule, steps=steps, warmup=min(schedule.warmup, steps // 5))
    if batch is not None:
        schedule = dataclasses.replace(schedule, batch=batch)
    rank = os.environ.get("LOCAL_RANK")  # one of several processes, each with its own GPU
    loaded = load(model, device=f"cuda:{rank}" if rank and torch.cuda.is_available() else None)
    say = (lambda text: _say(text, "dim")) if recipe.is_first() else (lambda text: None)
    recipe.train(name, loaded, sources, work, seed=seed, workers=workers, schedule=schedule, say=say)
    if recipe.is_first():
        loaded.save_pretrained(output)
        out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


for _name, _help in {
    "vl-1": "The video branch learns from captions.",
    "vl-2": "The video branch learns from instructions.",
    "al-1": "The audio branch learns from captions - of pictures, seen by ImageBind.",
    "al-2": "The audio branch learns from instructions - on pictures, seen by ImageBind.",
}.items():
    train_app.command(_name, help=_help)(_train_phase)


@app.command()
def evaluate(
    clips: Annotated[int, typer.Option(help="How many fresh clips.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the clips; the box was trained on those below 1000.", min=1000)] = 1000,
    model: Annotated[str, typer.Option(help="'box', or a folder that knows the small world.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.", show_default=False)] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the table here (png, svg or pdf).", show_default=False)] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Only this one; all if not given.", show_default=False)] = None,
) -> None:
    """How often the answers are right, of every kind of question, with and without each part of the model."""
    from vlt.model.load import load
    from vlt.train import evaluate as evaluation

    _check_file(json_file)
    _check_file(figure)
    if figure is not None and figure.suffix.lower() not in FIGURES:
        raise VltError(f"{figure}: figures are written as {', '.join(FIGURES)}")
    rows = evaluation.evaluate(load(model), clips, seed, condition or ())
    _hand_out(evaluation.markdown(rows), rows, json_file)
    if figure is not None:
        evaluation.draw(rows, figure)


@app.command()
def hearing(
    clips: Annotated[int, typer.Option(help="How many fresh clips to ask about.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the clips, and of the first weights.", min=1000)] = 1000,
    model: Annotated[str, typer.Option(help="'box', or a folder that knows the small world.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.", show_default=False)] = None,
) -> None:
    """Does hearing come from pictures? Trains the audio branch on pictures, on sound, and without binding, and asks."""
    from vlt.model.load import load
    from vlt.train import hearing as comparison

    _check_file(json_file)
    rows = comparison.compare(load(model), clips, seed)
    _hand_out(comparison.markdown(rows), rows, json_file)


def _hand_out(text: str, rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """The table first: it is there also where the file cannot be written."""
    typer.echo(text)
    if json_file is not None:
        write_whole(json_file, json.dumps(rows, indent=1) + "\n")


FIGURES = (".png", ".svg", ".pdf")


def _check_file(path: Path | None) -> None:
    """Before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise VltError(f"{path}: give a file in a folder that exists")
    if path is not None and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise VltError(f"{path}: cannot be written")


if __name__ == "__main__":
    main()
