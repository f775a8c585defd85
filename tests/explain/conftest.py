"""A scorer that can be worked out on paper, and runs of the box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlt.explain import methods
from vlt.explain.methods import Task
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe.axes import plain
from vlt.probe.trace import Trace, trace

CLIPS = Path(__file__).parents[2] / "data" / "clips"


class OnPaper:
    """score(x [n, place, llm_width]) = sum of weight * x, plus `product` times the first numbers of places 0 and 1."""

    def __init__(self, value: Tensor, weight: Tensor, product: float = 0.0, batch: int = 4) -> None:
        self.value, self.weight, self.product, self.batch = value, weight, product, batch
        self.axes = [plain("place", value.shape[1]), plain("llm_width", value.shape[2])]
        self.at, self.target, self.forwards, self.bar = "paper", "answer", 0, tqdm(disable=True)

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        assert len(x) <= self.batch or x.requires_grad
        return (x * self.weight).flatten(1).sum(1) + self.product * x[:, 0, 0] * x[:, 1, 0]


VALUE = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 4.0], [-2.0, 1.0]]])
WITHOUT = torch.tensor([[[0.0, 1.0], [1.0, 1.0], [0.5, 0.0], [0.0, -1.0]]])
WEIGHT = torch.tensor([[2.0, -1.0], [0.5, 1.0], [3.0, 0.25], [-1.0, 2.0]])
# weight * (value - without), summed over a place: 2*1 - 1*1; .5*2 + 1*-2; 3*0 + .25*4; -1*-2 + 2*2
GAIN = [1.0, -1.0, 1.0, 6.0]


def on_paper(product: float = 0.0, cells: dict[str, int] | None = None, **options: Any) -> Task:
    scorer: Any = OnPaper(VALUE, WEIGHT, product)
    numbers = methods.cells(scorer.axes, VALUE, cells or {})
    return Task(scorer, VALUE, WITHOUT, numbers, False, options)


@pytest.fixture(scope="session")
def bell(boxed: VideoLlama) -> Trace:
    return trace(boxed, Clip(CLIPS / "two_bell.mp4"), "What do you hear?")


@pytest.fixture(scope="session")
def square(boxed: VideoLlama) -> Trace:
    return trace(boxed, Clip(CLIPS / "two_bell.mp4"), "What colour is the square?")
