"""How anything is trained here: one loop (Hugging Face's `Trainer`), and the paper's four phases with their numbers.

The same loop runs on a laptop, on several GPUs and on several machines (`accelerate launch -m vlt.cli train ...`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from vlt.errors import VltError, first_line, nearest, read_json, write_whole
from vlt.model.video_llama import VideoLlama
from vlt.train import datasets
from vlt.train.branches import Branch
from vlt.train.datasets import Problem

WEIGHTS = "model.safetensors"
PROBLEMS = "problems.jsonl"
SETTINGS = "settings.json"


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
    """One of the paper's four. purpose: what its files hold, "captions" or "instructions". max_caption: its tokens."""

    branch: str
    purpose: str
    max_caption: int
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
    """`Trainer`, which keeps of a model only what learns: a 7B language model that is frozen is not written each time.
    And which logs how many seconds it has trained, those before it was cut off included."""

    _began: float | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._began is None:
            before = self.state.log_history[-1].get("seconds", 0.0) if self.state.log_history else 0.0
            self._began = self._made - before
        super().log({**logs, "seconds": round(time.perf_counter() - self._began, 1)}, start_time)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._made = time.perf_counter()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            model: Any = self.accelerator.unwrap_model(self.model)
            give_out(model, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        take_in(model or self.accelerator.unwrap_model(self.model), folder / WEIGHTS, str(folder))


class Bar(ProgressCallback):
    """A bar that shows the loss, on standard error."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")


def give_out(model: nn.Module, path: Path, log: Mapping[str, Any] | None = None) -> None:
    """What learns, to a file; with it a log, which `take_in` gives back."""
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    write_whole(path, save(weights, {"log": json.dumps(log or {})}))


def take_in(model: nn.Module, path: Path, whole: str = "it") -> dict[str, Any]:
    """Weights that `give_out` wrote, into exactly those parameters that learn. Returns the log that came with them.

    whole: what is to be removed where the file is broken."""
    try:
        weights = load_file(path)
        with safe_open(path, "pt") as file:
            log = json.loads((file.metadata() or {}).get("log", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise VltError(f"{path}: cannot be opened: {first_line(error)}; remove {whole} to do its work again") from error
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theirs, ours = ({name: list(p.shape) for name, p in named.items()} for named in (weights, learns))
    if wrong := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        raise VltError(f"{path}: was written by other training than this: {len(wrong)} weights differ, such as {wrong[0]}")
    with torch.no_grad():
        for name, p in learns.items():
            p.copy_(weights[name])
    return log


def same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Notes in a work folder what it belongs to; raises `VltError` where it belongs to something else."""
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if path.exists():
        found = read_json(path)
        for name in sorted(found.keys() | settings.keys()):
            if found.get(name) != settings.get(name):
                told = f"{name} {json.dumps(found.get(name))}, not {json.dumps(settings.get(name))}"
                raise VltError(f"{folder}: holds unfinished training with {told}; finish that, or give another folder")
    elif last_checkpoint(folder):
        raise VltError(f"{folder}: holds unfinished training, and no {SETTINGS} that tells of which; give another folder")
    elif is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1) + "\n")


def fingerprint(model: nn.Module) -> str:
    """Tells models apart by their weights."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        digest.update(name.encode() + p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_first() -> bool:
    """Of several processes, the one that writes what all share."""
    return os.environ.get("RANK", "0") == "0"


def last_checkpoint(folder: Path) -> str | None:
    """The latest that was written whole: `Trainer` writes its state last."""
    found = [(int(p.name.split("-")[1]), p) for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    for _, path in sorted(found, reverse=True):
        try:
            read_json(path / "trainer_state.json")
            return str(path)
        except VltError:
            continue
    return None


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
    holds one, training goes on from there, to the result that it would have had. Returns the log: loss, rate and
    seconds by step.
    """
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch,
        max_grad_norm=schedule.clip,
        train_sampling_strategy="sequential",
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=4 if workers else None,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=[],
        logging_steps=min(25, schedule.steps),
        save_steps=save_every,
        save_total_limit=2,
        seed=seed,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        use_cpu=not cuda,
        report_to="none",
        disable_tqdm=quiet,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for `accelerate launch`: nothing splits a list of prompts
    loop = Loop(
        task,
        arguments,
        data_collator=collate,
        train_dataset=data,
        optimizers=optimiser(task, schedule),
        callbacks=list(callbacks),
    )
    loop.remove_callback(PrinterCallback)  # they write to standard output
    loop.remove_callback(ProgressCallback)
    if not quiet:
        loop.add_callback(Bar)
    loop.train(resume_from_checkpoint=last_checkpoint(folder))
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

    Broken rows and clips that cannot be read are left out, told, counted, and listed in problems.jsonl. A work folder
    of other training is refused.
    """
    if name not in PHASES:
        raise VltError(f"no phase {name!r}; {nearest(name, PHASES)}")
    phase, n_rows, broken, sets = PHASES[name], {}, [], []
    schedule, processes = schedule or phase.schedule, int(os.environ.get("WORLD_SIZE", "1"))
    for source in sources:
        rows, problems = datasets.read(source.file, source.media, phase.purpose)
        say(f"{source.file}: {len(rows)} rows, {len(problems)} broken")
        n_rows[str(source.file)] = len(rows)
        broken += problems
        sets.append(datasets.Examples(rows, model.tokenizer, model.config, phase.branch, phase.max_caption, seed))
    task = Branch(model, phase.branch)
    files = [[str(s.file), str(s.media), s.ratio, n_rows[str(s.file)]] for s in sources]
    settings = {"phase": name, "files": files, "seed": seed, "processes": processes, **dataclasses.asdict(schedule)}
    same_settings(work, settings | {"start": fingerprint(model)})
    notes = _Notes(work, broken, task)
    mixture = datasets.Mixture(sets, [s.ratio for s in sources], schedule.steps * schedule.batch * processes, seed)
    try:
        log = fit(
            task, mixture, schedule, work, collate=datasets.collate, seed=seed, workers=workers, callbacks=[notes], **options
        )
    finally:
        notes.write()
    if unreadable := list(notes.unreadable.values()):
        say(f"{len(unreadable)} clips could not be used: see {notes.path}")
    return Report(n_rows, broken, unreadable, log)


class _Notes(TrainerCallback):
    """Keeps the list of problems on disk, beside the checkpoints, and takes it up again with them."""

    def __init__(self, work: Path, broken: Sequence[Problem], task: Branch) -> None:
        rank = os.environ.get("RANK", "0")  # every process meets its own clips
        self.path = work / (PROBLEMS if rank == "0" else f"{rank}-{PROBLEMS}")
        self.broken, self.task = broken, task
        self.earlier: dict[str, Problem] = {}
        if self.path.exists() and last_checkpoint(work):
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.earlier = {row["source"]: Problem(row["source"], row["reason"]) for row in rows if row["what"] == "clip"}

    @property
    def unreadable(self) -> dict[str, Problem]:
        return self.earlier | self.task.problems

    def on_save(self, *_: Any, **__: Any) -> None:
        self.write()

    def write(self) -> None:
        found = [("row", problem) for problem in self.broken] + [("clip", problem) for problem in self.unreadable.values()]
        write_whole(self.path, "".join(json.dumps({"what": what} | dataclasses.asdict(p)) + "\n" for what, p in found))
