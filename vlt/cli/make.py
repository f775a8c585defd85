"""Making: `vlt convert`, `vlt train`, `vlt evaluate`, `vlt hearing`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vlt.cli import terminal
from vlt.errors import VltError


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
    with terminal.progress() as bar:
        task = bar.add_task("starting")
        from vlt.model import checkpoints

        files = {"vision": vision, "audio": audio, "eva": eva, "qformer": qformer, "imagebind": imagebind, "minigpt4": minigpt4}
        told = checkpoints.read_sizes(sizes) if sizes else None
        report = checkpoints.convert(files, llm, output, told, template, lambda s: bar.update(task, description=s))
    table = Table("file", "tensors used", box=None, pad_edge=False, header_style="bold")
    for option, count in report.used.items():
        table.add_row(f"--{option}", str(count))
    terminal.out.print(table)
    for reason, keys in report.skipped.items():
        terminal.out.print(f"skipped {len(keys)}: {reason}", highlight=False, markup=False)
    for (first, later), count in report.overrides().items():
        terminal.out.print(f"--{later} overrides {count} tensors of --{first}", highlight=False, markup=False)
    if report.unused_sizes:
        terminal.out.print(f"not used from --sizes: {', '.join(report.unused_sizes)}", highlight=False, markup=False)
    how = "as asked" if template else "told from the language model; --template changes it"
    terminal.out.print(f"chat format: {report.template} ({how})", highlight=False, markup=False)
    terminal.out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


train_app = typer.Typer(help="Trains the model in the box, or one of the paper's four phases.", no_args_is_help=True)


@train_app.command("box")
def train_box(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0, max=99)] = 0,
    scale: Annotated[float, typer.Option(help="Of the number of steps; a small one only shows that it runs.")] = 1.0,
    work: Annotated[
        Path | None, typer.Option(help="For what is unfinished: OUT.work if not given.", show_default=False)
    ] = None,
    processes: Annotated[int, typer.Option(help="Two learn at the same time; one needs less memory.", min=1, max=2)] = 2,
) -> None:
    """The small model from nothing: eyes, image Q-Former, ImageBind, language model, then the four phases.

    Called again after it was cut off, it goes on where it was.
    """
    from vlt.train import box

    output, work = _check_output(output, work)
    table = Table("step", "steps", "loss, first", "last", "seconds", box=None, pad_edge=False, header_style="bold")
    for row in box.make(output, work, seed, scale, processes=processes):
        losses = f"{row['loss_first']:.3f}", f"{row['loss_last']:.3f}"
        table.add_row(row["name"], str(row["steps"]), *losses, f"{row['seconds']:.0f}")
    terminal.out.print(table)
    terminal.out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


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
    say = (lambda text: terminal.say(text, "dim")) if recipe.is_first() else (lambda text: None)
    recipe.train(name, loaded, sources, work, seed=seed, workers=workers, schedule=schedule, say=say)
    if recipe.is_first():
        loaded.save_pretrained(output)
        terminal.out.print(f"{output}: open it with vlt.load({str(output)!r})", highlight=False, markup=False, soft_wrap=True)


for _name, _help in {
    "vl-1": "The video branch learns from captions.",
    "vl-2": "The video branch learns from instructions.",
    "al-1": "The audio branch learns from captions - of pictures, seen by ImageBind.",
    "al-2": "The audio branch learns from instructions - on pictures, seen by ImageBind.",
}.items():
    train_app.command(_name, help=_help)(_train_phase)


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

    terminal.check_file(json_file)
    terminal.check_figure(figure)
    rows = evaluation.evaluate(load(model), clips, seed, condition or ())
    terminal.hand_out(evaluation.markdown(rows), rows, json_file)
    if figure is not None:
        evaluation.draw(rows, figure)


def hearing(
    clips: Annotated[int, typer.Option(help="How many fresh clips to ask about.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the clips, and of the first weights.", min=1000)] = 1000,
    model: Annotated[str, typer.Option(help="'box', or a folder that knows the small world.")] = "box",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.", show_default=False)] = None,
) -> None:
    """Does hearing come from pictures? Trains the audio branch on pictures, on sound, and without binding, and asks."""
    from vlt.model.load import load
    from vlt.train import hearing as comparison

    terminal.check_file(json_file)
    rows = comparison.compare(load(model), clips, seed)
    terminal.hand_out(comparison.markdown(rows), rows, json_file)
