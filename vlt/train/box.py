"""The model in the box, from nothing: its sizes, and the order in which its parts learn.

First what the paper takes as given (eyes, image Q-Former, ImageBind, language model), then the paper's four phases. A
run that was cut off goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
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
    """One part learns. task: made of the model. data: of the model, the seed, and how many examples there are to be; it
    is made when its turn comes, from what was learnt before."""

    name: str
    schedule: Schedule
    task: Callable[[VideoLlama], nn.Module]
    data: Data
    collate: Callable[[list[Any]], Any] | None = None


def steps(scale: float = 1.0) -> list[Step]:
    """All, in their order. scale: of the number of steps; a small one shows that all runs, and teaches little."""

    def schedule(steps: int, rate: float, least: float = 0.01) -> Schedule:
        steps = max(round(steps * scale), 2)
        return Schedule(steps, 64, rate, rate * least, rate / 30, steps // 10, weight_decay=0.01, clip=1.0)

    def phase(name: str, count: int, rate: float, branch: str, lesson: Callable[[str], Any]) -> Step:
        data = _seen(lesson(branch)) if branch == "video" else _heard(lesson(branch))
        return Step(name, schedule(count, rate), lambda model: branches.Branch(model, branch), data, lessons.together)

    return [
        Step("eyes", schedule(2200, 1.5e-3), foundations.Eyes, _pictures),
        Step("image-qformer", schedule(5000, 1e-3), foundations.Slots, _slots),
        Step("imagebind", schedule(1000, 1e-3), binding.Binding, _triples),
        Step("language-model", schedule(2000, 1e-3, 0.1), reading.Reader, _texts, reading.together),
        phase("vl-1", 1500, 1e-3, "video", lessons.caption),
        phase("vl-2", 1800, 1e-3, "video", lessons.instruction),
        phase("al-1", 300, 1e-3, "audio", lessons.caption),
        phase("al-2", 800, 5e-4, "audio", lessons.instruction),
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


def make(out: Path, work: Path, seed: int = 0, scale: float = 1.0, quiet: bool = False) -> list[dict[str, Any]]:
    """Trains the box from nothing and saves it in `out`. work: a folder for what is unfinished; another call with the
    same seed and scale goes on from what it holds. Returns, and writes to `out`/training.json, what each step came to,
    and how many seconds it took."""
    if not 0 <= seed <= MAX_SEED or not 0 < scale <= 10:
        raise VltError(f"seed {seed} and scale {scale}; expected 0 to {MAX_SEED}, and more than 0 up to 10")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise VltError("the box is small: it is trained in one process, not by several")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # faster than more on matrices so small
    model = newborn(seed)
    nn.Module.to(model, device)
    log = []
    for number, step in enumerate(steps(scale), start=1):
        log.append(_learn(model, step, work / f"{number}-{step.name}", seed, quiet))
    nn.Module.to(model.requires_grad_(False).eval(), "cpu", torch.float16)
    model.save_pretrained(out)
    write_whole(out / "training.json", json.dumps({"seed": seed, "scale": scale, "steps": log}, indent=1) + "\n")
    return log


def _learn(model: VideoLlama, step: Step, folder: Path, seed: int, quiet: bool) -> dict[str, Any]:
    torch.manual_seed(seed)  # of the task's own head
    schedule, start = step.schedule, time.perf_counter()
    model.requires_grad_(False)
    task = step.task(model).to(model.device)
    settings = {"step": step.name, "seed": seed, "start": recipe.fingerprint(model), **dataclasses.asdict(schedule)}
    recipe.same_settings(folder, settings)
    if (folder / DONE).exists():
        return recipe.take_in(task, folder / DONE)
    data = step.data(model.eval(), seed, schedule.steps * schedule.batch)
    preparing = time.perf_counter() - start
    rows = recipe.fit(task, data, schedule, folder, collate=step.collate, seed=seed, quiet=quiet)
    losses = [row["loss"] for row in rows if "loss" in row]
    seconds = round(preparing + rows[-1]["seconds"], 1)
    log = {"name": step.name, "steps": schedule.steps, "loss_first": losses[0], "loss_last": losses[-1], "seconds": seconds}
    recipe.give_out(task, folder / DONE, log)
    return log
