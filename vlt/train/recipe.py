"""How anything is trained here: one loop (Hugging Face's `Trainer`), and the paper's four phases with their numbers.

The same loop runs on a laptop, on several GPUs and on several machines (`accelerate launch -m vlt train ...`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vlt.errors import VltError, first_line, nearest
from vlt.model.video_llama import VideoLlama
from vlt.train import datasets
from vlt.train.branches import Branch
from vlt.train.datasets import Problem

WEIGHTS = "model.safetensors"
PROBLEMS = "problems.jsonl"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast. batch: examples per device. The rate rises in a line from warmup_rate to rate, and then
    follows a cosine down to min_rate that has been running since step 0: as in the original, there is a jump where
    they meet."""

    steps: int
    batch: int
    rate: float
    min_rate: float
    warmup_rate: float
    warmup: int
    weight_decay: float = 0.05
    clip: float = 0.0

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.warmup_rate + (self.rate - self.warmup_rate) * step / max(self.warmup, 1)
        return self.min_rate + (self.rate - self.min_rate) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclasses.dataclass(frozen=True)
class Phase:
    """One of the paper's four. purpose: what its files hold, "captions" or "instructions". max_tokens: of a text."""

    branch: str
    purpose: str
    max_tokens: int
    schedule: Schedule


# The original's configuration files. Batches are per GPU, and there were eight.
PHASES = {
    "vl-1": Phase("video", "captions", 32, Schedule(5 * 2500, 32, 1e-4, 8e-5, 1e-6, 2500)),
    "vl-2": Phase("video", "instructions", 320, Schedule(3 * 1000, 4, 3e-5, 1e-5, 1e-6, 1000)),
    "al-1": Phase("audio", "captions", 32, Schedule(5 * 5000, 32, 1e-4, 8e-5, 1e-6, 5000)),
    "al-2": Phase("audio", "instructions", 512, Schedule(3 * 1000, 4, 3e-5, 1e-5, 1e-6, 400)),
}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What learns, in two groups: biases and vectors do not decay. (Query tokens and positions do, as in the original.)"""
    learns = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    still = [p for name, p in learns if p.ndim < 2 or "bias" in name]
    decays = [p for name, p in learns if not (p.ndim < 2 or "bias" in name)]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]


def optimiser(model: nn.Module, schedule: Schedule) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    adam = torch.optim.AdamW(parameter_groups(model, schedule.weight_decay), lr=1.0, betas=(0.9, 0.999))
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, schedule.rate_at)


class Loop(Trainer):
    """`Trainer`, which keeps of a model only what learns: a 7B language model that is frozen is not written each time."""

    def _learning(self) -> dict[str, torch.Tensor]:
        model: Any = self.model
        return {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self._learning(), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        take_in(model or self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / WEIGHTS)


def take_in(model: nn.Module, path: Path) -> None:
    """Weights that `Loop` wrote, into exactly those parameters that learn."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VltError(f"{path}: cannot be opened: {first_line(error)}") from error
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if wrong := set(weights) ^ set(learns):
        raise VltError(f"{path}: was written by other training than this: {len(wrong)} names differ, such as {min(wrong)}")
    with torch.no_grad():
        for name, p in learns.items():
            p.copy_(weights[name])


def fit(
    task: nn.Module,
    data: Dataset,
    schedule: Schedule,
    folder: Path,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    save_every: int = 500,
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Trains what in `task` asks for a gradient. data: gone through in its own order. folder: for checkpoints; where it
    holds one, training goes on from there, to the result that it would have had. Returns the log: loss and rate by step.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch,
        max_grad_norm=schedule.clip,
        train_sampling_strategy="sequential",
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=4 if workers else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=[],
        logging_steps=min(25, schedule.steps),
        save_steps=save_every,
        save_total_limit=2,
        seed=seed,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        report_to="none",
        disable_tqdm=quiet,
    )
    loop = Loop(
        task,
        arguments,
        data_collator=collate,
        train_dataset=data,
        optimizers=optimiser(task, schedule),
        callbacks=list(callbacks),
    )
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    loop.train(resume_from_checkpoint=last)
    return loop.state.log_history


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of captions or instructions. media: the folder its videos and pictures lie in. ratio: its share of the
    examples, in whole numbers, beside other files'."""

    file: Path
    media: Path
    ratio: int = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of training on files. n_rows: usable rows of each file. broken: rows that are not. unreadable: clips
    that turned out not to be. log: loss and rate by step."""

    n_rows: dict[str, int]
    broken: list[Problem]
    unreadable: list[Problem]
    log: list[dict[str, float]]


def train(
    name: str,
    model: VideoLlama,
    sources: Sequence[Source],
    work: Path,
    *,
    seed: int = 0,
    say: Callable[[str], None] = print,
    workers: int = 0,
    schedule: Schedule | None = None,
    **options: Any,
) -> Report:
    """One of `PHASES` on files in the original's formats. model: from `vlt.load`; its branch learns, in place. work: a
    folder for checkpoints and problems.jsonl. schedule: by default the original's. options: for `fit`.

    Broken rows and clips that cannot be read are left out, told, counted, and listed in problems.jsonl.
    """
    if name not in PHASES:
        raise VltError(f"no phase {name!r}; {nearest(name, PHASES)}")
    phase, n_rows, broken, sets = PHASES[name], {}, [], []
    schedule = schedule or phase.schedule
    for source in sources:
        rows, problems = datasets.read(source.file, source.media, phase.purpose)
        say(f"{source.file}: {len(rows)} rows, {len(problems)} broken")
        n_rows[str(source.file)] = len(rows)
        broken += problems
        sets.append(datasets.Examples(rows, model.tokenizer, model.config, phase.branch, phase.max_tokens, seed))
    task = Branch(model, phase.branch)
    work.mkdir(parents=True, exist_ok=True)
    notes = _Notes(work, broken, task)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    mixture = datasets.Mixture(sets, [s.ratio for s in sources], schedule.steps * schedule.batch * processes, seed)
    try:
        log = fit(
            task, mixture, schedule, work, collate=datasets.collate, seed=seed, workers=workers, callbacks=[notes], **options
        )
    finally:
        notes.write()
    if task.problems:
        say(f"{len(task.problems)} clips could not be read: see {notes.path}")
    return Report(n_rows, broken, list(task.problems.values()), log)


class _Notes(TrainerCallback):
    """Keeps the list of problems on disk, beside the checkpoints, and takes it up again with them."""

    def __init__(self, work: Path, broken: Sequence[Problem], task: Branch) -> None:
        rank = os.environ.get("RANK", "0")  # every process meets its own clips
        self.path = work / (PROBLEMS if rank == "0" else f"{rank}-{PROBLEMS}")
        self.broken, self.task = broken, task
        if self.path.exists() and get_last_checkpoint(str(work)):
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            task.problems |= {row["source"]: Problem(row["source"], row["reason"]) for row in rows if row["what"] == "clip"}

    def on_save(self, *_: Any, **__: Any) -> None:
        self.write()

    def write(self) -> None:
        found = [("row", problem) for problem in self.broken] + [("clip", problem) for problem in self.task.problems.values()]
        self.path.write_text("".join(json.dumps({"what": what} | dataclasses.asdict(p)) + "\n" for what, p in found))
