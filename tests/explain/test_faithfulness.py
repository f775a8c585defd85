"""Measures of truth, worked out on paper; a true map beats maps that know nothing, an untrue one says so."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from tests.explain.conftest import GAIN, VALUE, WEIGHT, WITHOUT, OnPaper, on_paper
from vlt.errors import VltError
from vlt.explain import methods
from vlt.explain.attribution import Attribution, attribute
from vlt.explain.faithfulness import AT_MOST, WARNINGS, _maps, _moved, _sensitivity, faithfulness
from vlt.explain.methods import Task
from vlt.probe import edits
from vlt.probe.trace import Trace


def of(heat: list[float], task: Task) -> Attribution:
    """An attribution of the model on paper."""
    array = xr.DataArray(np.asarray(heat, dtype=np.float32), dims=["place"], attrs={"long_name": "heat for 'x'"})
    whole, rest = (float(task.scorer(v)) for v in (task.value, task.baseline))
    run: Any = None
    return Attribution(array, run, "paper", "ablation", "answer", "blank", {}, 0, whole, rest, 0.0, np.nan, 0, 0, 0.0, task)


def test_on_paper() -> None:
    """Gains are 1, -1, 1, 6; the whole brings 7 more than the baseline. By the true map places go 3, 0, 2, 1."""
    task = on_paper()
    found = faithfulness(of(GAIN, task), steps=4, controls=200, shifted=False, progress=False)
    score = found.attribution.score
    deletion = np.array([0, 6, 7, 8, 7])
    own = found.curves.sel(map="own", bound="mean")
    np.testing.assert_allclose(own.sel(curve="deletion"), score - deletion, atol=1e-5)
    np.testing.assert_allclose(own.sel(curve="insertion"), score - 7 + np.array([0, 6, 7, 8, 7]), atol=1e-5)
    value = found.table["value"]
    assert value["deletion"] == pytest.approx(score - np.trapezoid(deletion, dx=0.25), abs=1e-5)
    assert value["insertion"] == pytest.approx(score - 7 + np.trapezoid(deletion, dx=0.25), abs=1e-5)
    # of 1, 5, 10, 20 % of four places at least one is taken, of 50 % two: without them 6, 6, 6, 6, 7 is lost
    assert value["comprehensiveness"] == pytest.approx(31 / 5, abs=1e-5)
    assert value["sufficiency"] == pytest.approx(7 - 31 / 5, abs=1e-5)
    assert value["infidelity"] == pytest.approx(0, abs=1e-6)  # a sum of gains is what taking away costs
    assert found.beats["infidelity"]
    assert not found.beats["deletion"]  # of 24 orders of four places two are as good as the true one: more than 5 %
    # a random order loses, on average, a quarter of 7 at each step
    assert found.table["random"]["deletion"] == pytest.approx(score - 3.5, abs=0.5)
    low, high = (found.table[f"random {end}"]["deletion"] for end in ("low", "high"))
    assert low < found.table["random"]["deletion"] < high


def test_an_untrue_map_says_so() -> None:
    found = faithfulness(of([-g for g in GAIN], on_paper()), steps=4, controls=50, progress=False)
    assert not found.true and found.warning == WARNINGS["random"].format(found.table["random p"]["gain"])
    assert not found.beats["deletion"] and not found.beats["insertion"] and found.table["random p"]["gain"] > 0.8
    figure = found.figure()
    assert figure.alt.startswith(f"Warning: {found.warning}")
    assert f"⚠ {found.warning}" in [text.get_text() for text in figure.texts]


def test_infidelity_is_of_the_best_scale() -> None:
    twice = faithfulness(of([2 * g for g in GAIN], on_paper()), steps=4, controls=19, progress=False)
    wrong = faithfulness(of([6, 1, -1, 1], on_paper()), steps=4, controls=19, progress=False)
    assert twice.table["value"]["infidelity"] == pytest.approx(0, abs=1e-6)
    assert wrong.table["value"]["infidelity"] > 1


def test_infidelity_knows_the_sign() -> None:
    """A map of the wrong sign is as wrong as one that says nothing: the scale that fits it best is 0."""
    nothing = faithfulness(of([0, 0, 0, 0], on_paper()), steps=4, controls=19, progress=False)
    wrong = faithfulness(of([-g for g in GAIN], on_paper()), steps=4, controls=19, progress=False)
    assert wrong.table["value"]["infidelity"] == pytest.approx(nothing.table["value"]["infidelity"])
    assert wrong.table["value"]["infidelity"] > 1


def test_infidelity_of_cells_of_unequal_size() -> None:
    """What taking a cell away costs is the sum of what its places bring, not their mean: nine places in cells of two."""
    value, without = (torch.cat([v, v, v[:, :1]], dim=1) for v in (VALUE, WITHOUT))
    scorer: Any = OnPaper(value, torch.cat([WEIGHT, WEIGHT, WEIGHT[:1]]))
    task = Task(scorer, value, without, methods.cells(scorer.axes, value, {"place": 2}), False, {})
    found = faithfulness(of([*GAIN, *GAIN, GAIN[0]], task), steps=4, controls=40, shifted=False, progress=False)
    assert found.table["value"]["infidelity"] == pytest.approx(0, abs=1e-4)
    assert found.beats["infidelity"]


def test_the_hottest_cell_is_the_one_with_most_heat() -> None:
    """Nine places in cells of two; the single one of the last has the greatest mean and the smallest sum, and goes last:
    what is taken away is the whole cell."""
    value = torch.ones(1, 9, 1)
    slopes = torch.tensor([*[2.0] * 8, 3.0])[:, None]
    scorer: Any = OnPaper(value, slopes, batch=100)
    task = Task(scorer, value, 0 * value, methods.cells(scorer.axes, value, {"place": 2}), False, {})
    found = faithfulness(of(slopes[:, 0].tolist(), task), steps=5, controls=19, progress=False)
    own = found.curves.sel(map="own", bound="mean", curve="deletion").values
    np.testing.assert_allclose(own, [19, 15, 11, 7, 3, 0], atol=1e-5)


def test_ties_are_broken_by_lot(bell: Trace) -> None:
    """A map that says the same of all places knows nothing, in whatever order they are numbered."""
    heat = attribute(bell, "parts", "ablation", "bell", progress=False)
    level = dataclasses.replace(heat, heat=heat.heat * 0)
    found = [faithfulness(level, steps=4, controls=20, progress=False, seed=seed) for seed in range(6)]
    assert sum(each.true for each in found) <= 2
    assert len({each.table["value"]["deletion"] for each in found}) > 1


def test_sensitivity_of_an_edited_run_is_refused(bell: Trace) -> None:
    heat = attribute(bell.rerun(edits.reverse()), "frames", "rollout", "bell", progress=False)
    with pytest.raises(VltError, match="measured on unedited runs; this one has 1 edits"):
        faithfulness(heat, steps=2, controls=19, samples=1, progress=False)


def test_cells_stay_together() -> None:
    task = on_paper(cells={"place": 1})
    found = faithfulness(of(GAIN, task), steps=2, controls=19, progress=False)
    assert found.curves["fraction"].values.tolist() == [0, 0.25, 0.5, 0.75, 1]  # of so few cells each is a step
    with pytest.raises(VltError, match=r"2 cells, 10 steps, .*needed are 4 cells"):
        faithfulness(of(GAIN, on_paper(cells={"place": 2})), progress=False)


def test_shifted_maps_are_the_map_moved() -> None:
    """One hot place of four: moved by lot it is at one of the three others."""
    found = faithfulness(of([0, 0, 0, 5], on_paper()), steps=4, controls=400, progress=False)
    one = found.curves.sel(map="shifted", curve="deletion", bound="mean", fraction=0.25)
    score = found.attribution.score
    assert float(one) == pytest.approx(score - np.mean([1, -1, 1]), abs=0.2)


def test_maps_are_moved_along_every_axis_and_never_stay() -> None:
    heat, draw = np.arange(24).reshape(2, 3, 4), np.random.default_rng(0)
    places = [np.unravel_index(int(moved.argmin()), heat.shape) for moved in _moved(heat, 400, draw)]
    assert len(places) == 23 and set(places) == set(np.ndindex(2, 3, 4)) - {(0, 0, 0)}
    assert len({int(moved.argmin()) for moved in _moved(heat, 9, draw)}) == 9


def test_whole_cells_are_moved() -> None:
    """Cells of 2 x 3 places on heat [4, 7], the last ones narrower: six moves of a grid of 2 x 3, of which each has the heat
    of the places that came there, for as many places as there are."""
    rows, columns = np.arange(4) // 2, np.arange(7) // 3
    heat = np.repeat([[1.0, 2, 3], [4, 5, 6]], 2, axis=0)[:, columns]
    maps = _maps(heat, rows[:, None] * 3 + columns, 19, True, np.random.default_rng(0))
    assert maps["own"][0].tolist() == [6, 12, 6, 24, 30, 12]
    sizes = np.array([[6, 6, 2]] * 2)
    means = np.array([[1, 2, 3], [4, 5, 6]])
    wanted = {tuple((np.roll(means, far, axis=(0, 1)) * sizes).ravel()) for far in np.ndindex(2, 3)} - {(6, 12, 6, 24, 30, 12)}
    assert {tuple(moved.tolist()) for moved in maps["shifted"]} == wanted and len(maps["shifted"]) == 5
    means = np.array(maps["random"]) / sizes.ravel()
    assert len(means) == 19 and means.max() < 1 and np.ptp(means.mean(0)) < 0.4  # nor do these know of sizes


def test_the_class_token_stays_where_it_is() -> None:
    """It is of no place: heat on it can be moved to none, and a map that knows nothing but it is not true of places."""
    heat = np.arange(2 * 5.0).reshape(2, 5)
    maps = _maps(heat, np.arange(10).reshape(2, 5), 400, True, np.random.default_rng(0), first=True)
    assert {(moved[0], moved[5]) for moved in maps["shifted"]} == {(0.0, 5.0)} and len(maps["shifted"]) == 7
    assert {tuple(sorted(moved)) for moved in maps["shifted"]} == {tuple(range(10))}
    grids = {tuple(np.array(moved).reshape(2, 5)[:, 1:].ravel()) for moved in maps["shifted"]}
    own = heat[:, 1:].reshape(2, 2, 2)
    moves = {tuple(np.roll(own, far, axis=(0, 1, 2)).ravel()) for far in np.ndindex(2, 2, 2)}
    assert grids == moves - {tuple(own.ravel())}


@pytest.mark.parametrize("by", [4, 16])
def test_maps_do_not_beat_others_by_the_size_of_cells(by: int) -> None:
    """Every place brings 1, and the last cell is smaller than the others: a map by lot must not be called true for that."""
    value = torch.ones(1, 97, 1)
    scorer: Any = OnPaper(value, torch.ones(97, 1), batch=5000)
    task = Task(scorer, value, torch.zeros_like(value), methods.cells(scorer.axes, value, {"place": by}), False, {})
    draw = np.random.default_rng(1)
    found = [faithfulness(of(draw.random(97).tolist(), task), steps=5, controls=19, seed=i, progress=False) for i in range(100)]
    assert np.mean([each.true for each in found]) <= 0.1


def test_the_warning_is_of_the_controls_that_are_beaten_least() -> None:
    found = faithfulness(of([0, 1, 0, 0] * 6, _line(24, [10])), steps=4, controls=19, progress=False)
    p = {kind: found.table[f"{kind} p"]["gain"] for kind in WARNINGS}
    assert not found.true and found.warning == WARNINGS[max(p, key=lambda kind: p[kind])].format(max(p.values()))


def test_what_was_tested_by_other_cells_says_so() -> None:
    hot = [10, 50, 80]
    right = of([float(i in hot) for i in range(96)], _line(96, hot))
    assert faithfulness(right, steps=24, controls=19, progress=False).said == ""
    found = faithfulness(right, cells={"place": 4}, steps=24, controls=19, progress=False)
    assert found.true and found.said.startswith("Tested by cells of 4 place: beats what knows nothing; of places within")


def _line(n: int, hot: list[int]) -> Task:
    value = torch.zeros(1, n, 1)
    value[0, hot] = 1
    scorer: Any = OnPaper(value, torch.ones(n, 1), batch=500)
    return Task(scorer, value, torch.zeros_like(value), methods.cells(scorer.axes, value, {}), False, {})


def test_on_the_box(bell: Trace) -> None:
    heat = attribute(bell, "parts", "ablation", "bell", progress=False)
    found = faithfulness(heat, steps=4, controls=19, progress=False, seed=1)
    again = faithfulness(heat, steps=4, controls=19, progress=False, seed=1)
    assert found.true and found.warning == "" and found.table.equals(again.table)
    assert not found.table.equals(faithfulness(heat, steps=4, controls=19, progress=False, seed=2).table)
    drawn = heat.figure(found)
    assert "Warning" not in drawn.alt and "ablation at parts" in drawn.alt
    other = attribute(bell, "parts", "relevance", "bell", progress=False)
    with pytest.raises(VltError, match=r"of another map \(ablation at parts\); measure this one's own"):
        other.figure(found)


def test_warning_is_drawn_under_the_map(bell: Trace) -> None:
    heat = attribute(bell, "segment_tokens", "ablation", "bell", progress=False)
    inverted = dataclasses.replace(heat, heat=-heat.heat.assign_attrs(heat.heat.attrs))
    inverted.heat.attrs.update(heat.heat.attrs)
    found = faithfulness(inverted, steps=4, controls=19, progress=False)
    figure = inverted.figure(found)
    assert not found.true and figure.alt.startswith("Warning: Random maps do as well (p = ")
    assert [t.get_color() for t in figure.texts if t.get_text().startswith("⚠")] == ["#B00020"]


def test_sensitivity(bell: Trace) -> None:
    heat = attribute(bell, "segment_tokens", "gradient_x_input", "bell", progress=False)
    small, large = (
        faithfulness(heat, steps=2, controls=19, samples=3, noise=noise, progress=False).table.loc["sensitivity"]
        for noise in (0.001, 0.2)
    )
    assert 0 < small["value"] < large["value"]
    assert small["value"] < small["random"] and np.isnan(small["random p"])
    beside = attribute(bell, "parts", "gradient_x_input", "bell", progress=False)
    found = faithfulness(beside, steps=2, controls=19, samples=2, noise=0.5, progress=False)
    assert found.table["value"]["sensitivity"] > 0 and "sensitivity" not in found.beats
    rolled = attribute(bell, "segment_tokens", "rollout", "bell", progress=False)
    with pytest.raises(VltError, match="sensitivity of rollout is measured at frames, spectrograms; not at 'segment_tokens'"):
        faithfulness(rolled, samples=1, progress=False)
    read = attribute(bell, "spectrograms", "attention", progress=False, cells={"mel": 128, "time": 204})
    assert faithfulness(read, steps=2, controls=19, samples=1, progress=False).table["value"]["sensitivity"] > 0


def test_sensitivity_on_paper() -> None:
    """The greatest change over the length: heat (3, 4), once (3, 5), once (0, 4)."""
    heat, draw = np.array([3.0, 4.0]), np.random.default_rng(0)
    shaken = [np.array([3.0, 5.0]), np.array([0.0, 4.0])]
    assert _sensitivity("own", heat, shaken, draw) == pytest.approx(3 / 5)
    moved = [_sensitivity("shifted", heat, shaken[:1], np.random.default_rng(seed)) for seed in range(20)]
    assert {round(value, 3) for value in moved} == {round(float(np.hypot(5 - 3, 3 - 4)) / 5, 3)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 1}, "needed are 4 cells, 2 steps and 0 samples at least, and noise above 0"),
        ({"samples": -1}, "needed are 4 cells"),
        ({"noise": 0.0}, "needed are 4 cells"),
        ({"noise": float("nan")}, "needed are 4 cells"),
        ({"controls": 18}, "18 controls; needed are 19 to 10,000: with fewer no map can be told from chance at 0.05"),
        ({"controls": 10_001}, "10001 controls; needed are 19"),
        ({"controls": "many"}, "a number of controls: expected int, got str"),
        ({"steps": 2.5}, "a number of steps: expected int, got float"),
        ({"samples": "1"}, "a number of samples: expected int, got str"),
        ({"noise": "x"}, "noise: expected int or float, got str"),
        ({"seed": -1}, "seed -1; expected a whole number"),
        ({"seed": 1.5}, "seed 1.5; expected a whole number"),
    ],
)
def test_numbers_that_make_no_sense(wrong: dict, message: str) -> None:
    with pytest.raises(VltError, match=message):
        faithfulness(of(GAIN, on_paper()), progress=False, **wrong)


def test_heat_that_is_no_number_is_no_map() -> None:
    with pytest.raises(VltError, match="not finite"):
        faithfulness(of([float("nan")] * 4, on_paper()), progress=False)


def test_p_is_the_share_of_random_maps_that_do_as_well() -> None:
    """Of the 24 orders of four places: taking away costs 6, 1, 1, -1 in the best; p counts those as good, ties with it.
    Four places can be moved in three ways, and it beats those: 1 of 4."""
    found = faithfulness(of(GAIN, on_paper()), steps=4, controls=2000, progress=False)
    gains = []
    for order in itertools.permutations(GAIN):
        lost = np.cumsum([0, *order])  # deletion; insertion gains the same
        gains.append(2 * np.trapezoid(lost, dx=0.25) - sum(GAIN))
    best = [0, *sorted(GAIN, reverse=True)]
    own = 2 * np.trapezoid(np.cumsum(best), dx=0.25) - sum(GAIN)
    assert found.table["value"]["gain"] == pytest.approx(own, abs=1e-4)
    as_good = np.mean(np.array(gains) >= own - 1e-9)
    assert as_good == 2 / 24 and found.table["random p"]["gain"] == pytest.approx(as_good, abs=0.02)
    assert found.controls == {"random": 2000, "shifted": 3} and found.table["shifted p"]["gain"] == 1 / 4
    assert not found.true and found.warning == WARNINGS["random"].format(found.table["random p"]["gain"])


def test_of_few_cells_a_map_must_beat_every_move() -> None:
    """Five places, of which two are of the cause: a map that is hotter beside than on the first is beaten by its move."""
    task = _line(5, [1, 3])
    right = faithfulness(of([0, 2, 0, 1, 0], task), steps=5, controls=500, progress=False)
    wrong = faithfulness(of([2, 0, 1, 0, 0], task), steps=5, controls=500, progress=False)
    assert right.table["shifted p"]["gain"] == 1 / 5 and right.controls["shifted"] == 4
    assert right.p == right.table["random p"]["gain"] and wrong.p == max(wrong.table[f"{kind} p"]["gain"] for kind in WARNINGS)
    assert wrong.table["shifted p"]["gain"] > 1 / 5 and not wrong.true and wrong.warning
    assert right.table["random p"]["gain"] > 0.05 and right.warning == WARNINGS["random"].format(
        right.table["random p"]["gain"]
    )


@pytest.mark.parametrize("kind", ["each cell by lot", "smooth", "one number for four cells"])
def test_maps_that_know_nothing_are_true_no_oftener_than_the_level_says(kind: str) -> None:
    """Whether their cells are independent or not: of 64 places, what is brought lies on a stretch of eight."""
    value = torch.zeros(1, 64, 1)
    value[0, 40:48] = 1
    scorer: Any = OnPaper(value, torch.ones(64, 1), batch=5000)
    task = Task(scorer, value, torch.zeros_like(value), methods.cells(scorer.axes, value, {}), False, {})
    draw, found = np.random.default_rng(1), []
    for i in range(150):
        heat = draw.normal(size=64)
        if kind == "smooth":
            heat = np.fft.irfft(np.fft.rfft(heat) * np.exp(-(np.arange(33) ** 2) / 20), 64)
        elif kind == "one number for four cells":
            heat = np.roll(np.repeat(heat[:16], 4), int(draw.integers(4)))
        found.append(faithfulness(of(heat.tolist(), task), steps=4, controls=19, seed=i, progress=False))
    assert np.mean([each.true for each in found]) <= AT_MOST
    by_random = np.mean([each.table["random p"]["gain"] <= 0.05 for each in found])
    untrue = [each for each in found if not each.true]
    for each in untrue:
        worst = max(each.table[f"{kind} p"]["gain"] for kind in WARNINGS)
        assert worst == each.p > 0.05 and f"(p = {worst:.2g})" in each.warning
    assert by_random < 0.085 if kind == "each cell by lot" else by_random > 0.1  # which is why maps are moved, too


@pytest.mark.parametrize(("count", "measured"), [(8, 0.053), (12, 0.077), (19, 0.042), (20, 0.015)])
def test_few_cells_are_tested_as_strictly(count: int, measured: float) -> None:
    """Of smooth maps that know nothing (shares of 600; here of 200); by random controls alone it would be 0.06 to 0.14."""
    value = torch.zeros(1, count, 1)
    value[0, 2 : 2 + count // 4] = 1
    scorer: Any = OnPaper(value, torch.ones(count, 1), batch=5000)
    task = Task(scorer, value, torch.zeros_like(value), methods.cells(scorer.axes, value, {}), False, {})
    draw, near = np.random.default_rng(1), np.exp(-np.square(np.arange(-3, 4)) / 2)
    found = []
    for i in range(200):
        heat = np.convolve(np.tile(draw.normal(size=count), 3), near, "same")[count : 2 * count]
        found.append(faithfulness(of(heat.tolist(), task), steps=4, controls=19, seed=i, progress=False))
    often = np.mean([each.true for each in found])
    assert often == pytest.approx(measured, abs=0.035) and often <= AT_MOST + 0.01
    assert found[0].controls == {"random": 19, "shifted": min(19, count - 1)}


def test_what_is_known_is_not_scored_again(bell: Trace) -> None:
    """Of the same run, stage, target, baseline and cells; of another, it is."""
    run = bell.rerun(edits.zero("frame_position"))
    heats = {
        name: attribute(run, "segment_tokens", "gradient_x_input", target, baseline=baseline, progress=False)
        for name, target, baseline in (("a", "bell", "blank"), ("b", 0, "blank"), ("c", "bell", "zero"))
    }

    def measured(name: str, **options: Any) -> tuple[Any, int]:
        before = heats[name].task.scorer.forwards
        table = faithfulness(heats[name], steps=4, controls=19, progress=False, **options).table
        return table, heats[name].task.scorer.forwards - before

    first, rows = measured("a")
    again, none = measured("a")
    assert rows > 20 and none == 0 and first.equals(again)
    assert measured("a", seed=1)[1] < rows  # of 8 cells, some were left in together before
    for other in ("b", "c"):
        assert measured(other)[1] > 90
    fresh = bell.rerun(edits.zero("frame_position"))
    alone = attribute(fresh, "segment_tokens", "gradient_x_input", 0, progress=False)
    assert faithfulness(alone, steps=4, controls=19, progress=False).table.equals(measured("b")[0])
    assert "shifted" not in faithfulness(heats["a"], steps=4, shifted=False, progress=False).table


def test_true_of_segments_or_of_cells(bell: Trace) -> None:
    """The bell sounds in one segment of eight. A map that lies on it is true of segments, and another that is hottest in
    silence is not, whatever they are of mel cells."""
    whole = {"mel": 128, "time": 204}
    right = attribute(bell, "spectrograms", "integrated_gradients", "bell", progress=False)
    wrong = attribute(bell, "spectrograms", "relevance", "bell", progress=False)
    assert [int(m.heat.sum(["mel", "time"]).argmax("segment")) for m in (right, wrong)] == [1, 5]
    found = [faithfulness(m, cells=whole, controls=200, progress=False) for m in (right, wrong)]
    p = [each.table["random p"]["gain"] for each in found]
    assert p[0] < 0.05 < 0.2 < p[1] and found[0].true and not found[1].true
    assert found[0].curves["fraction"].values.tolist() == [i / 8 for i in range(9)]  # of 8 cells there are no tenths
    with pytest.raises(VltError, match="cells: no axis 'height'"):
        faithfulness(right, cells={"height": 3})
