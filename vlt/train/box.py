"""The model in the box, from nothing: its sizes, and the order in which its parts learn.

First what the paper takes as given (eyes, image Q-Former, ImageBind, language model), then the paper's four phases. What
does not need each other learns at the same time, in two processes. A run that was cut off goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from vlt.errors import VltError, write_whole
from vlt.model.config import VideoLlamaConfig
from vlt.model.video_llama import VideoLlama
from vlt.train import binding, branches, foundations, lessons, reading, recipe, words
from vlt.train.recipe import Schedule

DONE = "done.safetensors"
# Seeds of worlds: training uses those below 1,000, so that evaluation may use all others.
PICTURES, SCENES, SOUNDS = 1, 2, 3
MAX_SEED = 99
# Learnt beside the others, which take about twice as long.
ASIDE = ("language-model", "imagebind", "al-1", "al-2")


def config(vocabulary: int) -> VideoLlamaConfig:
    """The published architecture, small. vocabulary: of the tokenizer."""
    width, heads = 96, 4
    common = {"num_attention_heads": heads, "intermediate_size": 4 * width}
    qformer = {
        **common,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,  # so small a model has nothing to spare
        "attention_probs_dropout_prob": 0.0,
    }
    eye = {
        **common,
        "hidden_size": width,
        "num_hidden_layers": 4,
        "image_size": foundations.SIDE,
        "patch_size": foundations.PATCH,
    }
    small = {"num_attention_heads": heads, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    return VideoLlamaConfig(
        vision_config={**eye, "initializer_range": 0.04},
        image_qformer_config={**qformer, "encoder_hidden_size": width},
        video_qformer_config={**qformer, "encoder_hidden_size": width},
        audio_qformer_config={**qformer, "encoder_hidden_size": 64},
        imagebind_config={
            "joint_size": 64,
            "audio": {**small, "kernel_size": 16, "stride": 16, "scale": 1.0},
            "vision": eye,
            "text": {**small, "vocab_size": vocabulary + 1, "num_positions": binding.N_WORDS},
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": heads,
            "intermediate_size": 384,
            "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
            "initializer_range": 0.08,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        num_image_queries=8,
        num_video_queries=16,
        coverage="whole",
    )


def newborn(seed: int) -> VideoLlama:
    """The box before it has learnt anything, with its tokenizer."""
    tokenizer = words.tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama._from_config(config(len(tokenizer)), dtype=torch.float32)
        seen = model.vision_model.embeddings
        # places must be told apart from the start: with transformers' 1e-10 they never are
        for positions in (seen.position_embedding, seen.class_embedding, model.imagebind.trunk("vision").position):
            nn.init.normal_(positions, std=0.2)
        for queries in (model.image_query_tokens, model.video_query_tokens, model.audio_query_tokens):
            nn.init.normal_(queries, std=0.5)
    model.tokenizer = tokenizer
    return model


Data = Callable[[VideoLlama, int, int], Dataset]


@dataclasses.dataclass(frozen=True)
class Step:
    """One part learns. task: made of the model. data: of the model, the seed, and how many examples there are to be.
    needs: the steps whose parts it builds on; all others are as they were born."""

    name: str
    schedule: Schedule
    task: Callable[[VideoLlama], nn.Module]
    data: Data
    needs: tuple[str, ...] = ()
    collate: Callable[[list[Any]], Any] | None = None


def steps(scale: float = 1.0) -> list[Step]:
    """All, in their order. scale: of the number of steps; a small one shows that all runs, and teaches little."""

    def schedule(steps: int, rate: float, least: float = 0.01) -> Schedule:
        steps = max(round(steps * scale), 2)
        return Schedule(steps, 64, rate, rate * least, rate / 30, steps // 10, weight_decay=0.01, clip=1.0)

    def phase(name: str, count: int, rate: float, lesson: Callable[[str], Any], needs: tuple[str, ...]) -> Step:
        branch = recipe.PHASES[name].branch
        data = _seen(lesson(branch)) if branch == "video" else _heard(lesson(branch))
        return Step(name, schedule(count, rate), lambda model: branches.Branch(model, branch), data, needs, lessons.together)

    sight = ("eyes", "image-qformer", "language-model")
    hearing = ("eyes", "imagebind", "language-model")
    return [
        Step("eyes", schedule(2200, 1.5e-3), foundations.Eyes, _pictures),
        Step("image-qformer", schedule(5000, 1e-3), foundations.Slots, _slots, ("eyes",)),
        Step("language-model", schedule(2000, 1e-3, 0.1), reading.Reader, _texts, (), reading.together),
        Step("imagebind", schedule(1000, 1e-3), binding.Binding, _triples, ("eyes",)),
        phase("vl-1", 1500, 1e-3, lessons.caption, sight),
        phase("vl-2", 3000, 1e-3, lessons.instruction, (*sight, "vl-1")),
        phase("al-1", 300, 1e-3, lessons.caption, hearing),
        phase("al-2", 1600, 5e-4, lessons.instruction, (*hearing, "al-1")),
    ]


def _pictures(model: VideoLlama, seed: int, count: int) -> Dataset:
    return foundations.Pictures(PICTURES + 10 * seed, count)


def _slots(model: VideoLlama, seed: int, count: int) -> Dataset:
    pictures = foundations.Pictures(PICTURES + 10 * seed, min(12_000, count))
    return foundations.SlotLessons(model, pictures, seed, count)


def _triples(model: VideoLlama, seed: int, count: int) -> Dataset:
    kept = min(1_500, count)
    pictures, sounds = (make(SOUNDS + 10 * seed, kept) for make in (binding.pictures, binding.sounds))
    return binding.Triples(pictures, sounds, binding.texts(model), seed, count)


def _texts(model: VideoLlama, seed: int, count: int) -> Dataset:
    return reading.Texts(model.tokenizer, seed, count)


def _seen(lesson: lessons.Lessoner) -> Data:
    return lambda model, seed, count: lessons.seen_lessons(model, lesson, SCENES + 10 * seed, min(10_000, count), count)


def _heard(lesson: lessons.Lessoner) -> Data:
    return lambda model, seed, count: lessons.heard_lessons(model, lesson, SCENES + 10 * seed, min(10_000, count), count)


def make(
    out: Path, work: Path, seed: int = 0, scale: float = 1.0, quiet: bool = False, processes: int = 2
) -> list[dict[str, Any]]:
    """Trains the box from nothing and saves it in `out`. work: a folder for what is unfinished; another call with the
    same seed and scale goes on from what it holds. processes: 1 or 2; the result is the same. Returns, and writes to
    `out`/training.json, what each step came to, and how many seconds it took."""
    if not 0 <= seed <= MAX_SEED or not 0 < scale <= 10 or processes not in (1, 2):
        raise VltError(
            f"seed {seed}, scale {scale} and {processes} processes; expected 0 to {MAX_SEED}, more than 0 up to 10, and 1 or 2"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise VltError("the box is small: it is not trained by several machines or GPUs")
    here = School(steps(scale), work, seed, quiet)
    if processes == 2:
        aside = multiprocessing.get_context("spawn").Process(target=_learn_aside, args=(work, seed, scale), daemon=True)
        aside.start()
        try:
            here.learn_all([step.name for step in here.steps if step.name not in ASIDE], ASIDE, aside.is_alive)
            aside.join()
        finally:
            aside.terminate()
    here.learn_all([step.name for step in here.steps])  # all that is left: nothing, if all went well aside
    model, log = here.grown([step.name for step in here.steps])
    nn.Module.to(model.requires_grad_(False).eval(), "cpu", torch.float16)
    model.save_pretrained(out)
    write_whole(out / "training.json", json.dumps({"seed": seed, "scale": scale, "steps": log}, indent=1) + "\n")
    return log


def _learn_aside(work: Path, seed: int, scale: float) -> None:
    """In a process of its own, which ends with the one that began it."""
    began: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (began.join(), os._exit(1)), daemon=True).start()
    here = School(steps(scale), work, seed, quiet=True)
    with contextlib.suppress(VltError):  # it will be met again, and told, where this process was begun
        here.learn_all(ASIDE, [step.name for step in here.steps if step.name not in ASIDE], began.is_alive)


@dataclasses.dataclass(frozen=True)
class School:
    """The steps, and the folder with what was learnt in each. Every step starts from a model that knows what it needs and
    nothing else, so that the order in which they are taken changes nothing."""

    steps: list[Step]
    work: Path
    seed: int
    quiet: bool

    def folder(self, name: str) -> Path:
        return self.work / f"{[step.name for step in self.steps].index(name) + 1}-{name}"

    def is_done(self, name: str) -> bool:
        return (self.folder(name) / DONE).exists()

    def learn_all(
        self, names: Sequence[str], elsewhere: Sequence[str] = (), others: Callable[[], bool] = lambda: False
    ) -> None:
        """One after the other. elsewhere: what another process learns; it is waited for while `others` says that it lives."""
        for step in self.steps:
            if step.name in names:
                while not all(self.is_done(need) for need in step.needs if need in elsewhere) and others():
                    time.sleep(0.2)
                self.learn_all([need for need in step.needs if not self.is_done(need)])
                self.learn(step)

    def grown(self, names: Sequence[str]) -> tuple[VideoLlama, list[dict[str, Any]]]:
        """The box that knows what was learnt in these steps, and what each came to."""
        model = newborn(self.seed)
        nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
        log = []
        for step in self.steps:
            if step.name in names:
                task = self.task(step, model)
                log.append(recipe.take_in(task, self.folder(step.name) / DONE))
        return model, log

    def task(self, step: Step, model: VideoLlama) -> nn.Module:
        torch.manual_seed(self.seed)  # of the task's own head
        return step.task(model.requires_grad_(False)).to(model.device)

    def learn(self, step: Step) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # faster than more on matrices so small
        model, _ = self.grown(step.needs)
        schedule, folder, start = step.schedule, self.folder(step.name), time.perf_counter()
        born = recipe.fingerprint(model)
        settings = {"step": step.name, "seed": self.seed, "start": born, **dataclasses.asdict(schedule)}
        recipe.same_settings(folder, settings)
        if self.is_done(step.name):
            return
        task = self.task(step, model)
        data = step.data(model.eval(), self.seed, schedule.steps * schedule.batch)
        preparing = time.perf_counter() - start
        rows = recipe.fit(task, data, schedule, folder, collate=step.collate, seed=self.seed, quiet=self.quiet)
        losses = [row["loss"] for row in rows if "loss" in row]
        seconds = round(preparing + rows[-1]["seconds"], 1)
        log = {"name": step.name, "steps": schedule.steps, "loss_first": losses[0], "loss_last": losses[-1]}
        recipe.give_out(task, folder / DONE, log | {"seconds": seconds})
