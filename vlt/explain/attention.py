"""Methods of attribution that only read attention: raw, rolled out, or weighted by gradients. Cheap, popular, and not
always true: see `faithfulness`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlt.errors import VltError
from vlt.explain.methods import Task
from vlt.explain.scorer import PARTS
from vlt.probe import paths
from vlt.probe.sites import match
from vlt.probe.trace import Trace

# Stage -> the part of `vlt.path`'s result that is heat on it.
READ = {
    "prefix": "tokens",
    "frames": "video",
    "frame_tokens": "frame_tokens",
    "spectrograms": "audio",
    "segment_tokens": "segments",
}


def asks(at: str) -> bool:
    """Does raw attention to this stage hang on the question, and on the word of the answer?"""
    return at == "prefix"


def attention(task: Task) -> Tensor:
    """Raw attention of the last layer, mean over heads. At the prefix the place that predicts the word looks; elsewhere the
    stage's own Q-Former (its queries' mean) or ImageBind's class token, which know nothing of the question: the map is the
    same for every question and word. So it is nowhere comparable with that at another stage, and there is none at "parts".
    Unsigned."""
    name = READ[task.scorer.at]
    return _at_stage(task, "attention", lambda run, word: {name: _raw(run, name, word)})


def rollout(task: Task) -> Tensor:
    """Attention rollout, from the word of the answer through every part back to the stage: see `vlt.path`. Unsigned."""
    return _at_stage(task, "rollout", lambda run, word: paths.path(run, word, "rollout"))


def relevance(task: Task) -> Tensor:
    """Chefer's relevance, from the word of the answer through every part back to the stage: see `vlt.path`. Unsigned."""
    return _at_stage(task, "relevance", lambda run, word: paths.path(run, word, "relevance"))


def _at_stage(task: Task, how: str, read: Any) -> Tensor:
    run, target = task.scorer.run, task.scorer.target
    if isinstance(target, tuple | list):
        both = " rather than ".join(map(repr, target))
        raise VltError(f"{how} follows one word, or each of the answer's; it knows no contrast, such as {both}")
    words = list(range(len(run.answer.tokens))) if target == "answer" else [run.word(target)]
    if how == "attention" and not asks(task.scorer.at):
        words = words[:1]
    with task.bar(len(words)):
        heat = torch.stack([_of_word(task, read(run, word)) for word in words]).mean(0)
    task.scorer.forwards += len(words)
    task.backwards += len(words) if how == "relevance" else 0
    return heat


def _of_word(task: Task, found: Any) -> Tensor:
    """What was found, on the places of the stage."""
    task.scorer.bar.update(1)
    run, at = task.scorer.run, task.scorer.at
    if at == PARTS:
        kinds = {"video": "frame_tokens", "audio": "segments"}
        shares = [np.asarray(found[kinds[branch]]) for branch in dict.fromkeys(run.prompt.branches)]
        shares = [share.sum(-1) if share.ndim == 2 else share for share in shares]  # a frame's image queries together
        shares.append(np.asarray(found["tokens"])[run.tokens.find("question")])
        return torch.as_tensor(np.concatenate(shares))
    heat = torch.as_tensor(np.asarray(found[READ[at]]))
    if at == "prefix":
        return heat[: run.row.begin]  # the answer's own words are not asked about
    if at == "frames":
        side = task.value.shape[-1] // heat.shape[-1]
        return heat.repeat_interleave(side, 1).repeat_interleave(side, 2) / side**2
    return _over_mel(run, heat, task.value.shape[-2:]) if at == "spectrograms" else heat.flatten()


def _raw(run: Trace, name: str, word: int) -> np.ndarray:
    patterns = {"tokens": "language_model.*.self", "video": "image_qformer.*.cross", "frame_tokens": "video_qformer.*.cross"}
    patterns |= {"audio": "imagebind.*.self", "segments": "audio_qformer.*.cross"}
    last = match(patterns[name], run.sites, ("self", "cross"))[-1].name
    rows = {"tokens": run.row.begin - 1 + word, "audio": 0}.get(name)
    heat = run.attention(last, rows=rows, mean=True).values
    heat = heat.squeeze(-2) if name in ("tokens", "audio") else heat.mean(-2)  # over the queries that look
    if name == "frame_tokens":
        return heat.reshape(run.axes_of("image_queries")[0].size, -1)
    if name in ("video", "audio"):  # without the class token, and ImageBind's extra key
        places = run.axes_of("patches" if name == "video" else "imagebind.0")[1].coordinates
        rows, columns = (int(places[key].max()) + 1 for key in ("patch_row", "patch_column"))
        return heat[:, 1 : 1 + rows * columns].reshape(len(heat), rows, columns)
    return heat


def _over_mel(run: Trace, heat: Tensor, size: Any) -> Tensor:
    """Heat on a spectrogram's patches, spread evenly over the bins and columns that each covers."""
    trunk: Any = run.model.config.imagebind_config.audio
    out = torch.zeros(heat.shape[0], *size)
    for row, column in np.ndindex(*heat.shape[1:]):
        top, left, kernel = row * trunk.stride, column * trunk.stride, trunk.kernel_size
        out[:, top : top + kernel, left : left + kernel] += heat[:, row, column, None, None] / kernel**2
    return out
