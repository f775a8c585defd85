"""The tap: exact probabilities, reduced while they are made; what is not watched is as it was, and nothing stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.conftest import stand_in
from tests.probe.conftest import ATTENTIONS, QUESTION, everything_eager, looks, shipped, whole
from vlt import edits
from vlt.errors import VltError
from vlt.probe import attention
from vlt.probe.attention import Call, Change, Keep, Tap, Watcher, unwatched
from vlt.probe.trace import Trace, trace


def logits(run: Trace) -> torch.Tensor:
    return run.model.run(whole(run), ["logits"])["logits"][0]


def at_all(run: Trace, make) -> dict:
    return {site.module: [make()] for site in run.sites.values() if site.columns}


# ------------------------------------------------------------------ what is not watched, and what stays behind

WATCHERS = {
    "one that does nothing": Watcher,
    "one that keeps all": Keep,
    "one that keeps little": lambda: Keep(torch.tensor([1, 0]), torch.tensor([2]), [torch.tensor([0, 3])]),
    "none": None,
}


@pytest.mark.parametrize("name", WATCHERS)
@pytest.mark.parametrize("which", ["bell", "grouped_run"])
def test_a_watched_model_says_the_same(request: pytest.FixtureRequest, which: str, name: str) -> None:
    run = request.getfixturevalue(which)
    before, plain = looks(run.model), logits(run)
    make = WATCHERS[name]
    with Tap(run.model, at_all(run, make) if make else {m: [] for m in at_all(run, Watcher)}):
        assert {c for c in looks(run.model)[0] if c} == {attention.NAME}
        assert torch.equal(logits(run), plain)
    assert looks(run.model) == before
    assert torch.equal(logits(run), plain)


def test_a_watched_batch_with_padding_says_the_same(bell: Trace) -> None:
    """What is padding is looked at by nobody."""
    model, length = bell.model, bell.row.begin
    prefix = torch.nn.functional.pad(bell.stage("prefix")[:, :length], (0, 0, 6, 0)).repeat(2, 1, 1)
    prefix[1] = torch.cat([bell.stage("prefix")[0], bell.stage("prefix")[0, :6]])[-len(prefix[1]) :]
    mask = torch.ones(prefix.shape[:2], dtype=torch.bool)
    mask[0, :6] = False
    given = {"prefix": prefix, "prefix_mask": mask}
    plain, keep = model.run(given, ["logits"])["logits"], Keep()
    with Tap(model, {bell.sites["language_model.1.self"].module: [keep]}):
        assert torch.equal(model.run(given, ["logits"])["logits"], plain)
    alone = bell.attention("language_model.1.self", rows=slice(0, length)).values[..., :length]
    assert not keep.kept[0, :, :, :6].any()
    np.testing.assert_allclose(keep.kept[0, :, 6:, 6:].numpy(), alone, atol=1e-5)


def fails(*_: object) -> None:
    raise RuntimeError("on purpose")


class Fails(Watcher):
    see = fails


FAILURES = {
    "a watcher": lambda run: run.observe({"video_qformer.0.cross": Fails()}),
    "an output": lambda run: run.observe({"language_model.2": fails}),
    "an edit at a stage": lambda run: run.rerun(edits.custom("video_queries", fails)),
    "an edit inside a part": lambda run: run.rerun(edits.custom("image_qformer.1", fails)),
    "an edit of heads": lambda run: run.rerun(edits.custom("language_model.1.self", fails)),
    "a cut that is too much": lambda run: run.rerun(edits.knockout("all", by="all")),
    "an edit while decoding": lambda run: run.rerun(edits.custom("language_model.1", lambda x: fails() if len(x) == 1 else x)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_nothing_stays_behind_where_something_fails(bell: Trace, name: str) -> None:
    before, plain = looks(bell.model), logits(bell)
    with pytest.raises((RuntimeError, VltError), match=r"on purpose|nothing to look at"):
        FAILURES[name](bell)
    assert looks(bell.model) == before
    assert torch.equal(logits(bell), plain)


def test_nothing_stays_behind_where_all_goes_well(bell: Trace) -> None:
    before = looks(bell.model)
    bell.attention("**")
    _ = bell["language_model.*"]
    bell.rerun([edits.knockout("audio"), edits.zero("vision_model.1.mlp"), edits.scale("image_qformer.0.cross", 2.0, head=1)])
    assert looks(bell.model) == before


def test_a_tap_inside_a_tap(bell: Trace) -> None:
    """Each sees its own; the outer one goes on when the inner one closes."""
    module = bell.sites["language_model.0.self"].module
    outer, inner, before = Keep(), Keep(), looks(bell.model)
    with Tap(bell.model, {module: [outer]}):
        with Tap(bell.model, {module: [inner]}):
            logits(bell)
        assert torch.equal(outer.kept, inner.kept)
        outer.kept = inner.kept = None
        logits(bell)
    assert outer.kept is not None
    assert inner.kept is None
    assert looks(bell.model) == before


def test_unwatched_runs_are_not_seen(bell: Trace) -> None:
    keep, seen = Keep(), []
    sites = bell.sites
    with Tap(bell.model, {sites["language_model.0.self"].module: [keep]}, {sites["language_model.0"].module: [seen.append]}):
        with unwatched():
            logits(bell)
        assert keep.kept is None
        assert not seen
        logits(bell)
    assert keep.kept is not None
    assert len(seen) == 1


# ------------------------------------------------------------------ exact


@pytest.fixture(scope="module")
def exact(bell: Trace) -> dict[str, torch.Tensor]:
    recorder, names = everything_eager(bell)
    return {name: recorder.probabilities[names[name]] for name in ATTENTIONS}


@pytest.fixture(scope="module")
def kept(bell: Trace) -> dict[str, np.ndarray]:
    return {name: array.values for name, array in bell.attention("**").items()}


def test_every_attention_is_read(kept: dict[str, np.ndarray]) -> None:
    assert list(kept) == ATTENTIONS


@pytest.mark.parametrize("name", ATTENTIONS)
def test_probabilities_are_those_of_eager_attention(exact, kept, name: str) -> None:
    eager = exact[name].numpy()
    assert kept[name].dtype == np.float32
    assert np.abs(kept[name].reshape(eager.shape) - eager).max() <= 1e-6


@pytest.mark.parametrize("name", ATTENTIONS)
def test_rows_sum_to_one(kept, name: str) -> None:
    assert np.abs(kept[name].sum(-1) - 1).max() <= 1e-6


@pytest.mark.parametrize("name", [n for n in ATTENTIONS if n.endswith("self")])
def test_only_the_language_model_is_causal(kept, name: str) -> None:
    above = np.triu(kept[name], k=1)
    assert (above.max() > 0) == (not name.startswith("language_model"))


def test_probabilities_of_grouped_queries(grouped_run: Trace) -> None:
    recorder, names = everything_eager(grouped_run)
    found = grouped_run.attention("language_model.*.self")
    assert len(found) == 4
    for name, array in found.items():
        assert array.shape[0] == 4
        assert np.abs(array.values - recorder.probabilities[names[name]][0].numpy()).max() <= 1e-6
        assert not np.allclose(array[0], array[1], atol=1e-3)  # two heads of one group


@pytest.mark.parametrize("name", ATTENTIONS)
def test_probabilities_are_float32_in_a_model_of_half_precision(half: tuple[Trace, dict], name: str) -> None:
    run, calls = half
    query, key, mask, scaling = calls[name]
    scores = query.double() @ key.double().transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.double()
    elif name.startswith("language_model"):
        scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=torch.double).triu(1)
    expected = scores.softmax(-1).numpy()
    found = run.attention(name).values
    assert found.dtype == np.float32
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1e-6


@pytest.fixture(scope="module")
def half() -> tuple[Trace, dict]:
    """A run in bfloat16, and the queries and keys of every attention as SDPA was given them."""
    run = trace(stand_in(torch.bfloat16), shipped("two_bell"), "What?", answer="A bell.")
    calls: dict = {}
    names = {site.module: site.name for site in run.sites.values()}

    class Given(Watcher):
        def __init__(self, name: str) -> None:
            self.name = name

        def see(self, call: Call) -> None:
            calls[self.name] = (call.query, call.key, call.mask, call.scaling)

    with Tap(run.model, {module: [Given(names[module])] for module in at_all(run, Watcher)}):
        logits(run)
    assert calls["language_model.0.self"][0].dtype == torch.bfloat16
    return run, calls


# ------------------------------------------------------------------ reduced

REDUCTIONS = {
    "rows": ({"rows": [5, 0]}, lambda p: p[..., [5, 0], :]),
    "a row": ({"rows": 3}, lambda p: p[..., [3], :]),
    "heads": ({"head": [3, 1]}, lambda p: p[..., [3, 1], :, :]),
    "columns": ({"columns": [4, 1]}, lambda p: p[..., [4, 1]]),
    "a range of columns": ({"columns": "2:5"}, lambda p: p[..., 2:5]),
    "groups": ({"columns": ["0:3", "5:7"]}, lambda p: np.stack([p[..., :3].sum(-1), p[..., 5:7].sum(-1)], axis=-1)),
    "mean": ({"mean": True}, lambda p: p.mean(-3)),
    "all together": (
        {"rows": "2:4", "head": [0, 2], "columns": ["all", "1:3"], "mean": True},
        lambda p: np.stack([p[..., 2:4, :].sum(-1), p[..., 2:4, 1:3].sum(-1)], axis=-1)[..., [0, 2], :, :].mean(-3),
    ),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_are_slices_of_the_whole(bell: Trace, kept, reduction: str) -> None:
    asked, expected = REDUCTIONS[reduction]
    for name, array in bell.attention("**", **asked).items():
        np.testing.assert_allclose(array.values, expected(kept[name]), atol=1e-6, rtol=0, err_msg=name)


def test_rows_are_formed_some_at_a_time(bell: Trace, kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than the limit, and what comes out is the same."""
    formed, limit = [], 40_000
    form = Call.probabilities

    def noting(call: Call, *which: object) -> torch.Tensor:
        out = form(call, *which)
        formed.append((out.numel() * 4, out.shape[2]))
        return out

    monkeypatch.setattr(Call, "probabilities", noting)
    monkeypatch.setattr(attention, "AT_ONCE", limit)
    for name, array in bell.attention("**").items():
        np.testing.assert_allclose(array.values, kept[name], atol=1e-6, rtol=0, err_msg=name)
    assert all(size <= limit or rows == 1 for size, rows in formed)
    assert len(formed) > len(ATTENTIONS)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("asked", [{}, {"mean": True, "rows": [0, 1]}, {"columns": ["0:2"], "head": 1}])
def test_the_budget_is_what_is_kept(bell: Trace, name: str, asked: dict) -> None:
    size = bell.attention(name, **asked).size * 4
    bell.attention(name, **asked, limit=size)
    with pytest.raises(VltError, match="of attention would be kept"):
        bell.attention(name, **asked, limit=size - 1)


def test_over_budget_nothing_runs_and_the_numbers_are_named(bell: Trace) -> None:
    run, n = bell.edited(edits.scale("frames", 0.5), answer="I hear a bell."), bell.tokens.size
    size = 4 * 4 * n * n * 4 / 2**20
    with pytest.raises(VltError, match=rf"{size:.1f} MiB of attention would be kept, the limit is 0\.1 MiB") as error:
        run.attention("language_model.*.self", limit=100_000)
    assert "mean=True" in str(error.value)
    assert not run.values


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("which", ["bell", "grouped_run"])
def test_gradients_reach_every_attention(request: pytest.FixtureRequest, which: str) -> None:
    run = request.getfixturevalue(which)
    keeps = {module: [Keep(graph=True)] for module in at_all(run, Watcher)}
    plain = logits(run)
    with torch.enable_grad(), Tap(run.model, keeps):
        out = logits(run)
        slopes = torch.autograd.grad(out[-2].square().sum(), [keep.kept for (keep,) in keeps.values()])
    assert (out - plain).abs().max() <= 1e-5 * max(plain.abs().max(), 1)
    for (module, (keep,)), slope in zip(keeps.items(), slopes, strict=True):
        assert slope.shape == keep.kept.shape
        assert slope.isfinite().all(), module
        assert slope.abs().max() > 0, module


def test_gradients_of_what_is_given_are_those_of_the_model(bell: Trace) -> None:
    def slopes(watchers: dict) -> tuple[torch.Tensor, ...]:
        given = {name: value.clone().requires_grad_() for name, value in bell.given.items()}
        with torch.enable_grad(), Tap(bell.model, watchers):
            out = bell.model.run({**whole(bell), **given}, ["logits"])["logits"]
            return torch.autograd.grad(out[0, -2, bell.row.ids[-1]], list(given.values()))

    plain, kept = slopes({}), slopes(at_all(bell, lambda: Keep(graph=True)))
    for expected, slope in zip(plain, kept, strict=True):
        assert expected.abs().max() > 0
        assert (slope - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["language_model.1.self", "video_qformer.0.cross", "imagebind.1.self"])
def test_a_gradient_is_what_a_small_change_does(bell: Trace, name: str) -> None:
    """Probability p[head, row, column] grows by e: what the head says at that row grows by e times the value there."""
    module, keep, values = bell.sites[name].module, Keep(graph=True), []

    class Values(Watcher):
        def see(self, call: Call) -> None:
            values.append(call.value)

    def score() -> torch.Tensor:
        return logits(bell)[bell.row.begin + 2, bell.row.ids[3]]

    with torch.enable_grad(), Tap(bell.model, {module: [keep, Values()]}):
        (slope,) = torch.autograd.grad(score(), [keep.kept])
    at = np.unravel_index(slope.abs().argmax(), slope.shape)
    part, head, row, column = (int(i) for i in at)

    def grown(by: float) -> float:
        def change(mixed: torch.Tensor) -> torch.Tensor:
            mixed = mixed.clone()
            mixed[part, row, head] += by * values[0][part, head, column]
            return mixed

        with Tap(bell.model, {module: [Change(change)]}):
            return float(score())

    step = 0.02
    assert (grown(step) - grown(-step)) / (2 * step) == pytest.approx(float(slope[at]), rel=0.03)


def test_a_model_in_training_is_refused(bell: Trace) -> None:
    model = copy.deepcopy(bell.model)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    run = trace(model, bell.clip, QUESTION, answer="I hear a bell.")
    model.train()
    with pytest.raises(VltError, match=r"call model\.eval\(\)"):
        run.attention("video_qformer.0.cross")
    with pytest.raises(VltError, match=r"call model\.eval\(\)"):
        trace(model, bell.clip, QUESTION)


def test_masks_of_numbers_are_refused() -> None:
    """transformers makes none with the tap's mask function; one would mean something else here."""
    ones = torch.ones(1, 1, 2, 4)
    with pytest.raises(VltError, match=r"bool.*got torch\.float32"):
        Call(torch.nn.Module(), ones, ones, ones, torch.zeros(1, 1, 2, 2), 1.0)
