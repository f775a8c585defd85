"""What the language model would say if it stopped early, and which words its soft tokens are like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError, texts
from vlt.probe import language
from vlt.probe.axes import Axis, Index
from vlt.probe.trace import Trace


def lens(run: Trace, tokens: Index = "answering", layers: Index = "all", k: int = 5) -> xr.Dataset:
    """Logit lens (nostalgebraist, 2020): the residual stream behind a layer, read as if it were the last, through the
    final norm and the output embedding. Layer -1 is the prefix, before the first layer; the last layer's reading is what
    the model says.

    tokens: phrase or places ("answering": those from which the answer is predicted; "audio", "video 3"). layers: of the
    language model, from 0. Returns `prediction` and `logprob` (natural logarithm) [layer, token, rank], the likeliest first.
    """
    log, coords = _readings(run, tokens, layers)
    if not 1 <= k <= log.shape[-1]:
        raise VltError(f"k is {k}; the language model has words 1 to {log.shape[-1]}")
    top = log.topk(k, dim=-1)
    dims = ["layer", "token", "rank"]
    coords |= {"rank": np.arange(k)}
    words = _words(run, top.indices)
    return xr.Dataset({"prediction": (dims, words), "logprob": (dims, top.values.numpy())}, coords)


def lens_of(run: Trace, words: str | Sequence[str], tokens: Index = "answering", layers: Index = "all") -> xr.DataArray:
    """The same for given words, each of one token (as it stands inside an answer): log p [layer, token, target]."""
    words = texts(words, "words of lens_of")
    ids = [language.token_of(run.model, word) for word in words]
    log, coords = _readings(run, tokens, layers)
    return xr.DataArray(
        log[..., ids].numpy(),
        dims=["layer", "token", "target"],
        coords=coords | {"target": words},
        name="log-probability",
    )


@torch.no_grad()
def _readings(run: Trace, tokens: Index, layers: Index) -> tuple[Tensor, dict[str, Any]]:
    blocks = [site.name for site in run.sites.values() if site.kind == "block" and site.part == "language_model"]
    at = _layers(layers, len(blocks))
    places = run.tokens.find(tokens)
    residual: dict[int, Tensor] = {}
    if -1 in at:
        residual[-1] = run.stage("prefix")[0][places]
    watch = {blocks[i]: (lambda value, i=i: residual.__setitem__(i, value[0][places])) for i in at if i >= 0}
    if watch:
        run.observe(watch)
    decoder: Any = run.model.language_model.get_decoder()
    head: Any = run.model.language_model.get_output_embeddings()
    log = torch.stack([head(decoder.norm(residual[i])).float().log_softmax(-1).cpu() for i in at])
    coords: dict[str, Any] = {"layer": at}
    return log, coords | _labels(run, places)


def _labels(run: Trace, places: np.ndarray) -> dict[str, Any]:
    return {key: ("token", value) for key, value in run.tokens.coords(places).items()}


def _layers(layers: Index, count: int) -> list[int]:
    if isinstance(layers, str) and layers == "all":
        return list(range(-1, count))
    numbers = [layers] if isinstance(layers, int) else layers
    if isinstance(numbers, list | tuple) and numbers and all(isinstance(n, int) for n in numbers):
        if wrong := [n for n in numbers if not -1 <= int(n) < count]:
            raise VltError(f"layer {wrong[0]} was asked for; there are -1 (the prefix) to {count - 1}")
        return [int(n) for n in numbers]
    return Axis("layer", count).find(numbers).tolist()


def _words(run: Trace, ids: Tensor) -> np.ndarray:
    known = {i: run.model.pieces([i])[0] for i in ids.unique().tolist()}
    return np.vectorize(known.__getitem__, otypes=[object])(ids.numpy())


@torch.no_grad()
def nearest_words(run: Trace, tokens: Index = "all", k: int = 5) -> xr.Dataset:
    """For every soft token (or other place of the prefix) the words whose embeddings point most nearly the same way:
    `nearest` and `cosine` [token, rank]. tokens: phrase or places, for example "audio" or "video 3"."""
    places = run.tokens.find(tokens)
    table: Any = run.model.get_input_embeddings().weight
    if not 1 <= k <= len(table):
        raise VltError(f"k is {k}; the language model has words 1 to {len(table)}")
    prefix = torch.nn.functional.normalize(run.stage("prefix")[0][places].float(), dim=-1)
    like = prefix @ torch.nn.functional.normalize(table.float(), dim=-1).T
    top = like.cpu().topk(k, dim=-1)
    coords: dict[str, Any] = {"rank": np.arange(k)}
    dims = ["token", "rank"]
    return xr.Dataset(
        {"nearest": (dims, _words(run, top.indices)), "cosine": (dims, top.values.numpy())}, coords | _labels(run, places)
    )
