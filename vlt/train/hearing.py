"""Does hearing come from pictures? The audio branch, taught on pictures only, beside others - and at which length.

The original trains its ears on picture embeddings of length 1 and listens with sound embeddings of length 20.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlt.errors import VltError
from vlt.model.answer import Encoded
from vlt.model.video_llama import VideoLlama
from vlt.train import binding, box, branches, evaluate, lessons, recipe, talk, world

LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0)
TAUGHT = ("pictures", "sound", "pictures, ImageBind untrained")


def compare(
    model: VideoLlama,
    clips: int,
    seed: int = 1000,
    lengths: Sequence[float] = LENGTHS,
    ways: Sequence[str] = TAUGHT,
    scale: float = 1.0,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Rows {"taught", "length", "question", "n", "right", "low", "high", "chance"}.

    taught: what the audio branch was taught on, each time from nothing, with the model's ImageBind and language model;
    in the last an ImageBind that has learnt nothing, so that pictures and sounds are not bound. length: of the sound
    embeddings that it is then asked about. Pictures have length 1. seed: of the clips that it is asked about, and of the
    branch's first weights. ways: of TAUGHT. scale: of the number of training steps. Each way is taught once: the
    intervals do not hold what another training would give.
    """
    evaluate.check_seed(seed)
    made = list(world.scenes(seed, clips))
    spectrograms = _spectrograms(made)
    rows = []
    for taught in ways:
        pupil = _pupil(model, seed, bound="untrained" not in taught)
        _teach(pupil, "audio" if taught == "sound" else "vision", seed, scale, quiet)
        with torch.no_grad():
            heard = torch.cat(
                [pupil.imagebind.embed(part.to(pupil.device, torch.float32), "audio") for part in spectrograms.split(20)]
            )
        for length in lengths:
            found = _asked(pupil, made, functional.normalize(heard, dim=-1) * length)
            rows += [{"taught": taught, "length": length} | row for row in found]
    return rows


def _spectrograms(made: Sequence[world.Scene]) -> Tensor:
    return torch.stack([binding.heard(s.sounds, s.seed, world.N_SEGMENTS).half() for s in made])


def _pupil(model: VideoLlama, seed: int, bound: bool) -> VideoLlama:
    """The model with an audio branch that knows nothing yet."""
    pupil, fresh = copy.deepcopy(model).float(), box.newborn(seed % 100)
    parts = (*branches.PARTS["audio"], *(() if bound else ("imagebind",)))
    own = dict(pupil.named_parameters())
    with torch.no_grad():
        for name, value in fresh.named_parameters():
            if name.split(".")[0] in parts:
                if name not in own or own[name].shape != value.shape:
                    raise VltError(f"this model has not the box's sizes ({name}): what it hears cannot be compared")
                own[name].copy_(value)
    return pupil


def _teach(pupil: VideoLlama, modality: str, seed: int, scale: float, quiet: bool) -> None:
    bank = (binding.pictures if modality == "vision" else binding.sounds)(box.SOUNDS, round(max(500 * scale, 8)))
    features = functional.normalize(lessons.features(pupil, bank, modality).float(), dim=-1)
    for step in (s for s in box.steps(scale) if s.name.startswith("al-")):
        lesson = (lessons.caption if step.name == "al-1" else lessons.instruction)("audio")
        count = step.schedule.steps * step.schedule.batch
        data = lessons.slide_lessons(pupil, features, lesson, box.SCENES, min(10_000, count), count)
        with tempfile.TemporaryDirectory() as folder:
            task = step.task(pupil)
            recipe.fit(task, data, step.schedule, Path(folder), collate=step.collate, seed=seed, quiet=quiet)
    pupil.eval().requires_grad_(False)


def _asked(pupil: VideoLlama, made: Sequence[world.Scene], features: Tensor) -> list[dict[str, Any]]:
    with torch.no_grad():
        prefix = torch.cat(
            [pupil.run({"audio_features": part}, ["audio_prefix"])["audio_prefix"] for part in features.split(50)]
        )
    asked = [(Encoded("sound", "", {"audio": prefix[i]}), t) for i, s in enumerate(made) for t in talk.heard(s)]
    found = defaultdict(list)
    for (_, t), correct in zip(asked, evaluate.right(pupil, asked), strict=True):
        found[t.kind].append((t, correct))
    return [{"question": kind} | evaluate.share(results) for kind, results in found.items()]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text: a line for each way of teaching and each kind of question, a column for each length."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    cells = {(row["taught"], row["question"], row["length"]): row for row in rows}
    lines = []
    for taught, question in dict.fromkeys((t, q) for t, q, _ in cells):
        row = cells[taught, question, lengths[0]]
        shares = [f"{cells[taught, question, length]['right']:.2f}" for length in lengths]
        lines.append([taught, question, str(row["n"]), *shares, f"{row['chance']:.2f}"])
    return evaluate.as_table(["taught on", "question", "n", *(f"length {length:g}" for length in lengths), "chance"], lines)
