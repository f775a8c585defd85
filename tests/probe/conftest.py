"""Runs that several tests read, the names of all places, and transformers' own eager attention to compare with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.models.blip_2.modeling_blip_2 import eager_attention_forward as plain_eager
from transformers.models.llama.modeling_llama import eager_attention_forward as grouped_eager

from tests.conftest import byte_tokenizer, stand_in
from vlt.inputs.clip import Clip
from vlt.model import stages
from vlt.model.video_llama import VideoLlama
from vlt.probe import attention
from vlt.probe.sites import Site, sites
from vlt.probe.trace import Trace, trace
from vlt.train.box import config

FILES = Path(__file__).parents[2] / "data" / "clips"
QUESTION = "What do you hear?"

# All places of the box, as a model of its sizes has them: what is tested for each is tested for a new one by itself.
PLACES: dict[str, Site] = sites(stand_in())
ATTENTIONS = [name for name, site in PLACES.items() if site.columns]
AT_LANGUAGE_MODEL = [name for name, site in PLACES.items() if site.stage == "logits"]
# The stages at which an edit can stand.
EDITABLE = [name for name in stages.TENSOR_STAGES if name not in ("prefix_mask", "logits")]


def shipped(name: str) -> Clip:
    return Clip(FILES / f"{name}.mp4")


@pytest.fixture(scope="session")
def bell(boxed: VideoLlama) -> Trace:
    return trace(boxed, shipped("two_bell"), QUESTION)


@pytest.fixture(scope="session")
def buzz(boxed: VideoLlama) -> Trace:
    return trace(boxed, shipped("buzz"), QUESTION)


@pytest.fixture(scope="session")
def silent(boxed: VideoLlama) -> Trace:
    """A clip that is read fast: nearly all of that time goes into sound."""
    return trace(boxed, shipped("silent"), "What moves?")


def grouped(dtype: torch.dtype = torch.float32) -> VideoLlama:
    """The stand-in with a language model whose four heads share two keys and values."""
    sizes = config(259)
    sizes.text_config.num_key_value_heads = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoLlama._from_config(sizes, dtype=dtype)
    model.tokenizer = byte_tokenizer()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def grouped_run() -> Trace:
    return trace(grouped(), shipped("two_bell"), "What?", answer="A bell.")


# ------------------------------------------------------------------ transformers' own attention, recorded


class Recorder:
    """A copy of a model in which transformers' eager attention runs, and what it gave: module's name -> probabilities,
    and what the heads say. What goes on is SDPA's, so that every layer is given the same as in the model; or, with a
    graph, what is made of these probabilities, so that gradients reach them."""

    def __init__(self, model: VideoLlama, graph: bool = False) -> None:
        self.graph = graph
        self.model = copy.deepcopy(model)
        for found in configs(self.model):
            found._attn_implementation_internal = "recorded"
        self.names = {module: name for name, module in self.model.named_modules()}
        self.probabilities: dict[str, Tensor] = {}
        self.said: dict[str, Tensor] = {}

    def __call__(self, given: dict[str, Any], want: list[str]) -> dict[str, Any]:
        global _recorder
        _recorder = self
        return self.model.run(given, want)


_recorder: Recorder | None = None


def recorded(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **others: Any) -> Any:
    eager = grouped_eager if hasattr(module, "num_key_value_groups") else plain_eager
    assert _recorder is not None
    name = _recorder.names[module]
    said, probabilities = eager(module, query, key, value, mask, **others)
    _recorder.said[name], _recorder.probabilities[name] = said, probabilities
    if _recorder.graph:
        if not probabilities.requires_grad:
            probabilities.requires_grad_()
        groups = probabilities.shape[1] // value.shape[1]
        return (probabilities @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, None, **others)  # no padding here: causal, or nothing masked


def named(module: torch.nn.Module, *tensors: Any, attention_mask: Tensor | None = None, **others: Any) -> Any:
    query, key, value, *mask = tensors
    return recorded(module, query, key, value, mask[0] if mask else attention_mask, **others)


AttentionInterface.register("recorded", named)
AttentionMaskInterface.register("recorded", eager_mask)


def configs(model: torch.nn.Module) -> list[PreTrainedConfig]:
    found = {id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), PreTrainedConfig)}
    return list(found.values())


def everything_eager(run: Trace) -> tuple[Recorder, dict[str, str]]:
    """What eager attention gives for a run's clip, prompt and answer, and the modules' names by those of the places."""
    recorder = Recorder(run.model)
    recorder(whole(run), ["logits"])
    return recorder, module_names(run)


def whole(run: Trace) -> dict[str, Any]:
    """What `model.run` is given for one pass over a run's clip, prompt and answer."""
    return {**run.given, "prompt": [run.prompt.followed_by(run.answer.ids)]}


def module_names(run: Trace) -> dict[str, str]:
    names = {module: name for name, module in run.model.named_modules()}
    return {site.name: names[site.module] for site in run.sites.values()}


# ------------------------------------------------------------------ what a model looks like from outside


def looks(model: torch.nn.Module) -> list[Any]:
    """All that a tap touches: the attention that every configuration names, and every module's hooks."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    here = (attention._open.get(), dict(attention._users), dict(attention._before))
    return [[c._attn_implementation for c in configs(model)], hooks, here]
