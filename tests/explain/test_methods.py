"""Each method on a model that can be worked out on paper; each against captum called directly."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch

from tests.explain.conftest import GAIN, VALUE, WEIGHT, WITHOUT, OnPaper, on_paper
from vlt.errors import VltError
from vlt.explain import methods
from vlt.explain.attribution import COMPLETE, METHODS, READ_ATTENTION, Attribution, attribute, heat_of
from vlt.explain.faithfulness import faithfulness
from vlt.explain.methods import Task
from vlt.explain.scorer import PLACES, scorer
from vlt.probe.trace import Trace, trace


def close(heat: torch.Tensor, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(heat.numpy(), np.asarray(expected), atol=atol)


def test_gradients_on_paper() -> None:
    close(heat_of("saliency", on_paper(), 0), [3, 1.5, 3.25, 3])
    close(heat_of("smoothgrad", on_paper(n_samples=9), 0), [3, 1.5, 3.25, 3])  # noise changes no gradient of a line
    close(heat_of("gradient_x_input", on_paper(), 0), [0, 0.5, 2.5, 4])
    close(heat_of("integrated_gradients", on_paper(), 0), GAIN)
    close(heat_of("gradient_shap", on_paper(n_samples=7), 0), GAIN)
    # weights' mean over places: (1.125, 0.5625); times value, where above 0: 1.125 - ..., each place by hand
    mean = WEIGHT.mean(0)
    close(heat_of("grad_cam", on_paper(), 0), (VALUE[0] * mean).sum(-1).clamp(min=0))
    close(heat_of("grad_cam", on_paper(), 0), [2.25, 2.8125, 2.8125, 0])


class Squares(OnPaper):
    """score = half the sum of x^2, whose gradient is x."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().flatten(1).sum(1) / 2


def test_smoothgrad_is_the_size_of_the_mean_gradient_under_noise() -> None:
    """Where the gradient is 0, mean noise: its sizes are much smaller than the mean of sizes, and scale with the deviation
    and with what the values differ from the baseline by."""

    def of_zero(deviation: float, size: float) -> np.ndarray:
        value = torch.full((1, 400, 1), size)
        value[:, ::2] = 0  # root mean square: size / sqrt(2)
        score: Any = Squares(value, value[0], batch=500)
        task = Task(
            score, value, 0 * value, methods.cells(score.axes, value, {}), False, {"n_samples": 100, "deviation": deviation}
        )
        heat = heat_of("smoothgrad", task, 0).numpy()
        assert heat[1::2].mean() == pytest.approx(size, rel=0.1)
        return heat[::2]

    spread = 0.5 * 2 / np.sqrt(2)  # of the noise
    small = of_zero(0.5, 2.0)
    assert small.mean() == pytest.approx(spread * np.sqrt(2 / np.pi) / 10, rel=0.15)  # of 100 draws the mean
    np.testing.assert_allclose(of_zero(1.0, 2.0), 2 * small, rtol=1e-3)
    np.testing.assert_allclose(of_zero(0.5, 20.0), 10 * small, rtol=1e-3)


def test_what_is_missed() -> None:
    """More than a tenth of what all bring, and more than 0.05."""
    assert [methods.missed(*each) for each in ((0.04, 0.1), (0.06, 0.1), (0.9, 10), (1.1, 10), (-1.1, -10), (-0.9, 10))] == [
        False, True, False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["occlusion", "ablation", "shapley_sampling", "kernel_shap"])
def test_taking_away_on_paper(method: str) -> None:
    close(heat_of(method, on_paper(), 0), GAIN, atol=1e-3)


@pytest.mark.parametrize("method", ["ablation", "shapley_sampling", "kernel_shap"])
def test_cells_go_together(method: str) -> None:
    """Two places in a cell share what the cell brings."""
    close(heat_of(method, on_paper(cells={"place": 2}), 0), [0, 0, 3.5, 3.5], atol=1e-3)


def test_windows_that_overlap_are_averaged() -> None:
    """Windows of two places, one by one: {0,1}, {1,2}, {2,3} bring 0, 0, 7; a place has the mean of its windows, and
    of each the half."""
    heat = heat_of("occlusion", on_paper(cells={"place": 2}), 0)
    close(heat, [0, 0, 1.75, 3.5])
    close(heat_of("occlusion", on_paper(cells={"place": 2}, stride={"place": 2}), 0), [0, 0, 3.5, 3.5])


def test_what_two_bring_together_is_shared() -> None:
    """3 x0 x1: from (0, 1) to (1, 3) it brings 9. Alone place 0 brings 3, place 1 nothing; the rest of 6 is halved."""
    expected = [GAIN[0] + 6, GAIN[1] + 3, *GAIN[2:]]
    close(heat_of("shapley_sampling", on_paper(3.0, n_samples=400), 0), expected, atol=0.4)
    close(heat_of("kernel_shap", on_paper(3.0, n_samples=3000), 0), expected, atol=0.4)
    # along the line x0 = t, x1 = 1 + 2 t: the integral of 3 x1 is 6, that of 2 * 3 x0 is 3
    close(heat_of("integrated_gradients", on_paper(3.0, n_steps=200), 0), expected, atol=1e-2)
    close(heat_of("ablation", on_paper(3.0), 0), [GAIN[0] + 9, GAIN[1] + 6, *GAIN[2:]])


def test_rows_are_counted() -> None:
    task = on_paper()
    heat_of("ablation", task, 0)
    assert task.scorer.forwards == 5 and task.backwards == 0
    task = on_paper(n_steps=6)
    heat_of("integrated_gradients", task, 0)
    assert task.scorer.forwards == task.backwards == 6


def test_cells_are_numbered_from_the_left() -> None:
    task = on_paper(cells={"place": 3})
    assert task.cells[0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]] and task.n_cells == 2


@pytest.mark.parametrize(
    ("cells", "message"),
    [({"plaice": 2}, "cells: no axis 'plaice'"), ({"place": 0}, "cells: place = 0; expected a number of places from 1 on")],
)
def test_cells_that_make_no_sense(cells: dict, message: str) -> None:
    with pytest.raises(VltError, match=message):
        on_paper(cells=cells)


# ---------------------------------------------------------------------- on the box


CAPTUM: dict[str, Any] = {
    "saliency": lambda f, x, b, mask: captum.attr.Saliency(f).attribute(x),
    "gradient_x_input": lambda f, x, b, mask: captum.attr.InputXGradient(f).attribute(x),
    "integrated_gradients": lambda f, x, b, mask: captum.attr.IntegratedGradients(f).attribute(x, b, n_steps=32),
    "occlusion": lambda f, x, b, mask: captum.attr.Occlusion(f).attribute(x, (1, x.shape[-1]), baselines=b),
    "ablation": lambda f, x, b, mask: captum.attr.FeatureAblation(f).attribute(x, b, feature_mask=mask),
    "shapley_sampling": lambda f, x, b, mask: captum.attr.ShapleyValueSampling(f).attribute(
        x, b, feature_mask=mask, n_samples=25, perturbations_per_eval=16
    ),
    "kernel_shap": lambda f, x, b, mask: captum.attr.KernelShap(f).attribute(
        x, b, feature_mask=mask, n_samples=200, perturbations_per_eval=16
    ),
    "gradient_shap": lambda f, x, b, mask: captum.attr.GradientShap(f).attribute(x, b, n_samples=16),
}
CAPTUM["smoothgrad"] = lambda f, x, b, mask: sum(  # noise is drawn for one copy at a time
    captum.attr.NoiseTunnel(captum.attr.Saliency(f)).attribute(
        x, nt_type="smoothgrad", nt_samples=1, abs=False, stdevs=0.1 * float((x - b).detach().square().mean().sqrt())
    )
    for _ in range(16)
).abs() / 16  # fmt: skip
ONCE = ("occlusion", "ablation", "shapley_sampling", "kernel_shap")  # one value for all numbers of a place


@pytest.mark.parametrize("method", CAPTUM)
def test_as_captum_called_directly(method: str, bell: Trace) -> None:
    score = scorer(bell, "segment_tokens", "bell")
    baseline, _ = score.without()
    mask = torch.arange(8)[None, :, None].expand(1, 8, score.value.shape[-1]).contiguous()
    torch.manual_seed(3)
    np.random.seed(3)  # captum's GradientShap draws from it
    with torch.enable_grad():
        theirs = CAPTUM[method](score, score.value.detach().clone().requires_grad_(), baseline, mask).detach()[0]
    theirs = theirs[:, 0] if method in ONCE else theirs.sum(-1)
    options = {"n_samples": 16} if method in ("gradient_shap", "smoothgrad") else {}
    ours = attribute(bell, "segment_tokens", method, "bell", seed=3, progress=False, **options)
    np.testing.assert_allclose(ours.heat.values, theirs.numpy(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("at", ["frames", "spectrograms", "frame_tokens", "prefix", "parts"])
def test_gradients_as_finite_differences(at: str, square: Trace) -> None:
    score = scorer(square, at, "answer")
    x = score.value.detach().clone()
    draw = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
    direction = slope / slope.norm() + 0.3 * torch.nn.functional.normalize(
        torch.randn(x.shape, generator=draw).flatten(), dim=0
    ).view(x.shape)
    step = 0.02 if at != "prefix" else 0.002
    with torch.no_grad():
        ahead, behind = score(torch.cat([x + step * direction, x - step * direction]))
    expected = float((slope * direction).sum())
    assert expected > 0
    assert float(ahead - behind) / (2 * step) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_parts_and_features(method: str, bell: Trace) -> None:
    """Finite, labelled, reproducible; complete where it says so; and the bell's segment stands out."""
    at = "segment_tokens" if method == "grad_cam" else "parts"
    at = "segment_tokens" if method == "attention" else at
    options = {"n_samples": 5} if method in ("smoothgrad", "gradient_shap", "shapley_sampling") else {}
    found, again = (attribute(bell, at, method, "bell", progress=False, **options) for _ in range(2))
    assert np.isfinite(found.heat).all() and found.heat.values.any()
    np.testing.assert_array_equal(found.heat.values, again.heat.values)
    if method in COMPLETE:
        whole = found.score - found.score_without
        assert found.error == pytest.approx(float(found.heat.sum()) - whole, abs=1e-4)
        assert abs(found.error) < (1e-3 * whole if method != "gradient_shap" else whole)
    else:
        assert np.isnan(found.error)
    assert found.heat.attrs["long_name"] == "heat for 'bell'"
    hottest = found.heat[int(found.heat.values.argmax())]
    if method not in (*READ_ATTENTION, "grad_cam"):
        assert float(hottest["start" if at == "segment_tokens" else "seconds"]) == 2.0


def test_grad_cam_as_captum_called_directly(bell: Trace) -> None:
    """Its layer, behind one that passes the segment tokens on: gradients are averaged over all behind the first axis, which
    in a layer of pictures are places, and here must be put so."""

    class Behind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.score = torch.nn.Identity(), scorer(bell, "segment_tokens", "bell")

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, width, segment]
            return self.score(self.layer(x).mT)

    model = Behind()
    x = model.score.value.detach().clone().mT.requires_grad_()
    with torch.enable_grad():
        theirs = captum.attr.LayerGradCam(model, model.layer).attribute(x, relu_attributions=True)
    ours = attribute(bell, "segment_tokens", "grad_cam", "bell", progress=False)
    np.testing.assert_allclose(ours.heat.values, theirs[0, 0].detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["shapley_sampling", "kernel_shap"])
def test_the_error_of_what_is_drawn_is_told(method: str) -> None:
    """As far as maps of other seeds lie apart; where cells do not hang on each other, draws do not matter to orders."""
    draws = [on_paper(product=3.0) for _ in range(60)]
    heats = np.stack([heat_of(method, task, seed).numpy() for seed, task in enumerate(draws)])
    told = np.array([task.noise for task in draws])
    apart = heats.std(0, ddof=1).max()
    assert apart > 0.01 and np.median(told) == pytest.approx(apart, rel=0.35)
    plain = on_paper()
    heat_of(method, plain, 0)
    assert plain.noise == pytest.approx(0, abs=1e-5)
    assert np.isnan(on_paper().noise)


def test_what_there_is_without_it_stands_beside_the_heat(bell: Trace) -> None:
    """A contrast that is there without all of a stage comes from elsewhere: a bell is heard and not seen."""

    def of(run: Trace, at: str, *target: str) -> Attribution:
        return attribute(run, at, "gradient_x_input", target[0] if len(target) == 1 else target, progress=False)

    def elsewhere(found: Attribution) -> list[str]:
        return [warning for warning in found.warnings if "comes from elsewhere" in warning]

    wrong = trace(bell.model, bell.clip, bell.question, answer="I hear a buzz.")
    (seen,) = elsewhere(of(bell, "patches", "bell", "buzz"))
    assert re.fullmatch(r"The score is 4\.\d+ with all of it and 4\.\d+ without: most comes from elsewhere\.", seen)
    (against,) = elsewhere(of(bell, "patches", "bell", "chirp"))  # which there would be even more of
    assert against.endswith("most comes from elsewhere, and this speaks against 'bell'.")
    assert elsewhere(of(wrong, "patches", "buzz", "bell"))  # below 0
    for found in (of(bell, "audio_features", "bell", "buzz"), of(wrong, "audio_features", "buzz", "bell")):
        assert abs(found.score_without - found.score) > 5 and not elsewhere(found)
        scored = f"{found.score:.2f} with all of it, {found.score_without:.2f} without (baseline: blank)"
        assert f"log p of {found.target[0]!r}, less that of {found.target[1]!r} in its place: {scored}" in found.told
        assert scored in " ".join(found.figure().alt.split())
    assert "\nlog p of 'bell': " in of(bell, "audio_features", "bell").told
    assert "\nlog p of the whole answer: " in of(bell, "audio_features", "answer").told


@pytest.mark.parametrize("size", [1, 7])
def test_error_bars_are_as_long_as_the_errors(bell: Trace, size: int) -> None:
    """A part that shares its cell's heat shares its error."""
    found = attribute(bell, "parts", "shapley_sampling", "bell", n_samples=5, cells={"part": size}, progress=False)
    bars = [axes.collections[0].get_segments() for axes in found.figure().axes]
    half = np.array([(bar[1, 1] - bar[0, 1]) / 2 for kind in bars for bar in kind])
    assert len(half) == found.heat.size and half.max() == pytest.approx(found.noise / size)


def test_more_noise_than_map_is_a_warning(bell: Trace) -> None:
    few, many = (attribute(bell, "parts", "shapley_sampling", "bell", n_samples=n, progress=False) for n in (2, 25))
    assert many.noise < few.noise
    assert f"a cell's standard error is up to {many.noise:.2g}" in many.figure().alt
    loud = dataclasses.replace(many, noise=float(many.heat.max()))
    assert "Another draw gives another map" in loud.warnings[0] and not many.warnings
    with pytest.raises(VltError, match="shares what there is among cells, and here is one"):
        attribute(bell, "audio_features", "kernel_shap", cells={"segment": 8}, progress=False)


def test_what_lies_on_class_tokens_is_told(square: Trace) -> None:
    heat = attribute(square, "patches", "gradient_x_input", "white", progress=False)
    sizes = abs(heat.heat.values)
    share = sizes[:, 0].sum() / sizes.sum()
    assert abs(heat.heat.values[:, 0].sum()) / abs(heat.heat.values.sum()) != pytest.approx(share, abs=0.01)  # with signs
    assert f"not drawn, have {share:.0%} of the heat, without its sign." in heat.figure().alt


def test_grad_cam_is_of_each_frame(square: Trace) -> None:
    """At the frame tokens, too, a frame's gradients are averaged by themselves."""
    score = scorer(square, "frame_tokens", "white")
    with torch.enable_grad():
        leaf = score.value.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
    weight = slope[0].view(8, 8, -1).mean(1, keepdim=True)
    expected = (weight * score.value[0].view(8, 8, -1)).sum(-1).clamp(min=0).flatten()
    found = attribute(square, "frame_tokens", "grad_cam", "white", progress=False).heat.values
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_grad_cam_of_a_picture_is_of_its_patches(square: Trace) -> None:
    """The class token is no place of it, and its gradients, which are other, must not weigh there."""
    score = scorer(square, "patches", "white")
    with torch.enable_grad():
        leaf = score.value.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
    expected = (slope[0, :, 1:].mean(1, keepdim=True) * score.value[0]).sum(-1).clamp(min=0)
    found = attribute(square, "patches", "grad_cam", "white", progress=False).heat.values
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    with_it = (slope[0].mean(1, keepdim=True) * score.value[0]).sum(-1).clamp(min=0).numpy()
    assert np.abs(with_it - found)[:, 1:].max() > 0.1 * found[:, 1:].max()


def test_steps_are_doubled_until_the_sum_is_right(bell: Trace) -> None:
    """A score that jumps within a hundredth of the line needs more than 32 steps; where steps are asked for, there are no
    more, and the map says that its sum is wrong."""

    class Jump(OnPaper):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return 5 * torch.sigmoid(1000 * (super().__call__(x) / 7 - 0.63))

    def task(**options: Any) -> Task:
        scorer: Any = Jump(VALUE, WEIGHT)
        return Task(scorer, VALUE, WITHOUT, methods.cells(scorer.axes, VALUE, {}), False, options)

    line = task()
    heat = heat_of("integrated_gradients", line, 0)
    brings = float(line.scorer(VALUE) - line.scorer(WITHOUT))
    assert brings == pytest.approx(5, abs=0.01)
    assert line.options["n_steps"] > 32 and float(heat.sum()) == pytest.approx(brings, rel=0.1)
    assert line.backwards == 2 * line.options["n_steps"] - 32
    few = task(n_steps=8)
    assert abs(float(heat_of("integrated_gradients", few, 0).sum()) - brings) > 1 and few.options["n_steps"] == 8
    heat = attribute(bell, "spectrograms", "integrated_gradients", "bell", n_steps=2, progress=False)  # type: ignore[assignment]
    (warning,) = heat.warnings
    assert "ask for more n_steps (there were 2)" in warning
    assert warning in heat.figure().alt


def test_where_there_is_little_to_explain_it_says_so(bell: Trace) -> None:
    """What is seen brings nothing to what is heard."""
    heat = attribute(bell, "patches", "gradient_x_input", "bell", progress=False)
    assert heat.warnings == [
        f"The score is {heat.score:.2g} with all of it and {heat.score_without:.2g} without: little to explain."
    ]
    assert heat.little and heat.warnings[0] in heat.figure().alt
    some = attribute(bell, "audio_features", "gradient_x_input", "bell", progress=False)
    assert some.warnings == [] and not some.little


def test_what_cancels_is_not_little(bell: Trace) -> None:
    """Scores are alike, and cells are hot, for and against: there is much to explain. Of methods whose heat is not in the
    score's units nobody can say."""
    heat = attribute(bell, "audio_features", "occlusion", ("bell", "buzz"), progress=False)
    alike = dataclasses.replace(heat, score_without=heat.score)
    assert not alike.little and alike.warnings[0].endswith("what speaks for it and what speaks against it cancel.")
    cold = dataclasses.replace(alike, heat=heat.heat / float(abs(heat.heat).max()) * 0.09)
    assert cold.little and cold.warnings[0].endswith("little to explain.")
    slope = attribute(bell, "audio_features", "saliency", "bell", progress=False)
    slope = dataclasses.replace(slope, score_without=slope.score)
    assert slope.little and float(abs(slope.heat).max()) > 0.1


def test_seeds_and_batches(bell: Trace) -> None:
    def heat(**options: Any) -> np.ndarray:
        return attribute(bell, "segment_tokens", "shapley_sampling", progress=False, n_samples=3, **options).heat.values

    np.testing.assert_allclose(heat(batch=1), heat(batch=7), atol=1e-4)
    assert not np.allclose(heat(seed=0), heat(seed=1), atol=1e-4)


def test_global_randomness_is_left_alone(bell: Trace) -> None:
    for method in ("smoothgrad", "gradient_shap"):
        torch.manual_seed(5)
        np.random.seed(5)
        expected = torch.rand(3), np.random.rand(3)
        torch.manual_seed(5)
        np.random.seed(5)
        attribute(bell, "segment_tokens", method, progress=False, n_samples=2)
        assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


def test_pixels_are_windows_of_an_eighth(square: Trace) -> None:
    found = attribute(square, "frames", "ablation", "white", progress=False)
    assert found.heat.dims == ("frame", "height", "width") and found.task.n_cells == 8 * 8 * 8
    blocks = found.heat.values.reshape(8, 8, 8, 8, 8)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    assert found.forwards == 1 + 512


def test_smoothed(square: Trace) -> None:
    """Averaged with the neighbours of its own frame; the class token and the sum stay."""
    rough = attribute(square, "patches", "saliency", "white", progress=False).heat.values
    smooth = attribute(square, "patches", "saliency", "white", smooth=0.7, progress=False).heat.values
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / 0.7) ** 2)
    kernel /= kernel.sum()
    grid = np.pad(rough[:, 1:].reshape(8, 8, 8), ((0, 0), (3, 3), (3, 3)), mode="symmetric")
    by_hand = sum(kernel[a] * kernel[b] * grid[:, a : a + 8, b : b + 8] for a in range(7) for b in range(7))
    np.testing.assert_allclose(smooth[:, 1:].reshape(8, 8, 8), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(smooth[:, 0], rough[:, 0])
    np.testing.assert_allclose(smooth.sum(1), rough.sum(1), rtol=1e-5)
    pixels = attribute(square, "frames", "saliency", "white", smooth=1, progress=False).heat.values
    sharp = attribute(square, "frames", "saliency", "white", progress=False).heat.values
    np.testing.assert_allclose(pixels.sum((1, 2)), sharp.sum((1, 2)), rtol=1e-4)
    assert pixels.std() < 0.6 * sharp.std()
    drawn = attribute(square, "patches", "saliency", "white", smooth=0.7, progress=False).figure()
    assert any("smoothed over 0.7 patches" in text.get_text() for text in drawn.texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lime"}, "no method 'lime'; all: saliency"),
        ({"method": "integrated gradients"}, "no method 'integrated gradients'; nearest: integrated_gradients; all: saliency"),
        ({"rather": "buzz"}, r"one word rather than another is a target: target=\(word, 'buzz'\)"),
        ({"method": ["saliency"]}, "a method: expected str, got list"),
        ({"seed": -1}, "seed -1; expected a whole number"),
        ({"target": (1, 2)}, "a contrast is of two words"),
        ({"baseline": np.zeros(3)}, "no baseline"),
        ({"batch": True}, "batch True; expected a number of rows"),
        ({"cells": {"segment": True}}, "cells: segment = True; expected a number of places"),
        ({"method": "occlusion", "stride": 3}, "stride = 3; expected {axis: whole number of places}"),
        ({"method": "occlusion", "stride": {"segment": 0.5}}, "expected {axis: whole number of places}"),
        ({"method": "kernel_shap", "n_samples": 3}, "3 sets do not tell 8 cells apart"),
        ({"at": "frame"}, "attribution at 'frame'; nearest: frames; all: frames, patches"),
        ({"target": "buzz"}, "the answer has no word 'buzz'; its tokens are"),
        ({"target": ("bell", "buzz", "hum")}, "a contrast is of two words"),
        ({"target": ("bell", "bell")}, "is the same twice"),
        ({"target": ("bell", "antidisestablishment")}, "is not one token of this model"),
        ({"baseline": "zeros"}, "no baseline 'zeros'; nearest: zero; all: blank, zero, mean, or a tensor"),
        ({"baseline": torch.zeros(3)}, r"a baseline at 'segment_tokens' has shape \[8, 64\]; got \[3\]"),
        ({"n_steps": 0}, "integrated_gradients|n_steps = 0; expected a whole number from 1 on"),
        ({"n_samples": 3}, "integrated_gradients has no option 'n_samples'; it has n_steps"),
        ({"method": "smoothgrad", "deviation": 0}, "deviation = 0; expected a number above 0"),
        ({"method": "saliency", "n_samples": 3}, "saliency has no option 'n_samples'; it has none"),
        ({"batch": 0}, "batch 0; expected a number of rows from 1 on"),
        ({"method": "grad_cam", "at": "spectrograms"}, "grad_cam has heat at patches, .*; not at 'spectrograms'"),
        ({"method": "rollout", "target": ("bell", "buzz")}, "rollout follows one word, or each of .*; it knows no contrast"),
        ({"method": "rollout", "at": "patches"}, "rollout has heat at prefix, frames, .*, parts; not at 'patches'"),
        ({"method": "attention", "at": "patches"}, "attention has heat at prefix, frames, .*segment_tokens; not at 'patches'"),
        ({"method": "attention", "at": "parts"}, "attention has heat at .* those looks cannot be compared"),
        ({"method": "occlusion", "stride": {"segment": 2}}, "stride: segment = 2; expected 1 to the cells' 1"),
        ({"method": "occlusion", "stride": {"frame": 1}}, "stride: 'segment_tokens' has no axis 'frame'"),
        ({"at": "parts", "baseline": "mean"}, "the parts' baseline is blank"),
        ({"at": "parts", "baseline": "zero"}, "the parts' baseline is blank"),
        ({"target": "Bell"}, r"no word 'Bell' \(nearest: bell\); its tokens are 0 to 5: I"),
        ({"target": ("buzz", "bell")}, "no word 'buzz'.* give one of them, and then what it is said rather than"),
        ({"smooth": 1}, r"smooth: heat \[segment\] is on no picture"),
        ({"smooth": -1}, "smooth = -1; expected a number of patches from 0 on"),
    ],
)
def test_refusals(arguments: dict, message: str, bell: Trace) -> None:
    given = {"at": "segment_tokens", "method": "integrated_gradients", "progress": False} | arguments
    with pytest.raises(VltError, match=message):
        attribute(bell, given.pop("at"), given.pop("method"), given.pop("target", "answer"), **given)
    assert WITHOUT.shape == VALUE.shape


def test_smoothgrad_is_the_same_in_batches_of_any_size(bell: Trace) -> None:
    four, sixteen = (
        attribute(bell, "parts", "smoothgrad", "bell", n_samples=6, batch=batch, progress=False).heat for batch in (4, 16)
    )
    assert np.allclose(four, sixteen, atol=1e-5 * float(abs(four).max()))


@pytest.mark.parametrize("at", [at for at in PLACES if at != "prefix"])
def test_heat_at_every_stage_has_a_picture(at: str, bell: Trace) -> None:
    heat = attribute(bell, at, "gradient_x_input", "bell", progress=False)
    assert "gradient x input at" in heat.figure().alt and len(heat.figure().axes) >= 1
    if at == "audio_queries":
        bars = [patch.get_height() for patch in heat.figure().axes[0].patches]
        assert bars == pytest.approx(heat.heat.values.tolist())


def test_a_baseline_is_told_where_there_is_one(bell: Trace) -> None:
    """Once; also of a method that has none, of which the score without it has."""
    heat = attribute(bell, "segment_tokens", "saliency", "bell", progress=False)
    for figure in (heat.figure(), heat.figure(faithfulness(heat, controls=19, progress=False))):
        assert figure.alt.count("baseline") == figure.alt.count("without (baseline: blank)") == 1
    heat = attribute(bell, "patches", "saliency", "bell", progress=False)
    assert heat.little and "baseline" not in heat.figure().alt
    assert "Tested with baseline: blank." in heat.figure(faithfulness(heat, controls=19, progress=False)).alt
    assert "; baseline: blank" in attribute(bell, "segment_tokens", "ablation", "bell", progress=False).figure().alt
