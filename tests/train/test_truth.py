"""How maps are judged where the cause is known, worked out on paper; and that the causes are where they are said to be."""

from __future__ import annotations

import copy
import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.explain.faithfulness import faithfulness
from vlt.inputs.clip import Clip
from vlt.inputs.video import PIXEL_MEAN, PIXEL_STD
from vlt.model.video_llama import VideoLlama
from vlt.probe.trace import trace
from vlt.train import pointing, sights, tables, talk, truth, world
from vlt.train.tables import MODEL, OTHER, RANDOM, SWAPPED
from vlt.view import figures


def compare(*asked: Any, **options: Any) -> pd.DataFrame:
    return tables.summary(truth.maps(*asked, **options))


CAUSE = np.zeros((2, 2, 3))
CAUSE[0, 0, 0], CAUSE[0, 0, 1], CAUSE[1, 1, 2] = 1.0, 0.2, 0.5  # a cell that is covered by .2 is not of the cause


def test_judged_on_paper() -> None:
    grid = np.array([[[5.0, 1, 0], [-9, 0, 2]], [[0, 0, 0], [3, 0, 4]]])
    found = pointing.judge(grid, CAUSE)
    assert found["pointing"] == 1 and found["chance"] == pytest.approx(2 / 12) and found["area"] == pytest.approx(1.7 / 12)
    assert found["mass"] == pytest.approx((5 * 1 + 1 * 0.2 + 4 * 0.5) / (5 + 1 + 2 + 3 + 4))
    assert found["rank"] == 1  # 5 and 4 are above all others
    grid[0, 1, 2] = 4.5
    assert pointing.judge(grid, CAUSE)["rank"] == pytest.approx(19 / 20)
    grid[1, 1, 0] = 5.0  # as hot as the hottest
    assert pointing.judge(grid, CAUSE)["pointing"] == 0.5
    assert pointing.judge(np.zeros((2, 2, 3)), CAUSE) == pytest.approx(
        {"pointing": 2 / 12, "mass": 1.7 / 12, "area": 1.7 / 12, "rank": 0.5, "chance": 2 / 12}
    )
    with pytest.raises(VltError, match="a cause is somewhere, and not everywhere"):
        pointing.judge(grid, np.ones((2, 2, 3)))


def test_judged_over_segments() -> None:
    found = pointing.judge(np.array([0.0, -1, 7, 2]), np.array([0.0, 0, 1, 0]))
    assert found["pointing"] == 1 and found["mass"] == pytest.approx(7 / 9) and found["chance"] == 0.25


def test_cells_that_go_together_are_judged_as_one() -> None:
    """A thing that moves from the left half of the picture to the right: [2 frames, 2 x 4 patches of 2 x 2 pixels]."""
    cause = np.zeros((2, 2, 4))
    cause[0, 0, 0], cause[1, 0, 1], cause[1, 0, 2] = 1, 1, 0.2
    heat = np.zeros((2, 4, 8))
    heat[:, :2, :2] = 1  # a tube of one patch, hot in both frames, of which the thing is there in one
    assert pointing.judge(heat, cause)["pointing"] == 0.5 and pointing.judge(heat, cause)["chance"] == 2 / 16
    for cells in ({"frame": 3}, {"height": 6, "width": 4}, {"height": 1000}, {"height": 3, "width": 3}):
        with pytest.raises(VltError, match="do not tile"):
            pointing.judge(heat, cause, cells)
    with pytest.raises(VltError, match="not finite"):
        pointing.judge(heat * np.nan, cause)
    tubes = pointing.judge(heat, cause, {"frame": 2, "height": 2, "width": 2})
    assert tubes["pointing"] == 1 and tubes["chance"] == 2 / 8 and tubes["area"] == pytest.approx(2.2 / 16)
    assert tubes["mass"] == 0.5  # it covers half of what is hot, in frames
    assert tubes["rank"] == pytest.approx((6 + 3) / 12)  # of the two tubes of the cause, one is above six, one like them
    squares = pointing.judge(heat, cause, {"height": 4, "width": 4})  # 2 x 2 patches, each frame apart
    assert squares["pointing"] == 1 and squares["chance"] == 2 / 4
    assert pointing.judge(heat[:, :, ::-1], cause, {"height": 4, "width": 4})["pointing"] == 0
    assert pointing.judge(heat, cause, {"height": 1}) == pointing.judge(heat, cause)  # finer than patches: by patches


def test_heat_is_summed_over_the_grid() -> None:
    pixels = np.zeros((2, 4, 6))
    pixels[1, 3, 5], pixels[1, 2, 4], pixels[0, 0, 2] = 1, 2, 4
    grid = pointing.on_grid(pixels, CAUSE)
    assert grid.shape == (2, 2, 3) and grid[1, 1, 2] == 3 and grid[0, 0, 1] == 4 and grid.sum() == 7
    patches = np.arange(14.0).reshape(2, 7)  # a class token before six patches
    assert pointing.on_grid(patches, CAUSE)[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert pointing.on_grid(np.ones((3, 5, 7)), np.array([0.0, 1, 0])).tolist() == [35, 35, 35]


@pytest.fixture(scope="module")
def known(boxed: VideoLlama, tmp_path_factory: pytest.TempPathFactory) -> list[truth.Case]:
    folder = tmp_path_factory.mktemp("clips")
    scenes = list(world.scenes(1000, 2, n_things=2, n_sounds=1))
    for i, made in enumerate(scenes):
        world.write(made, folder / f"{i}.mp4", silence=True)
    return [case for i in range(2) for case in truth.cases(boxed, scenes, folder, i)]


def _nearest(pixels: np.ndarray) -> str:
    """Of the world's colours, to normalised pixels [pixel, channel]."""
    mean = 255 * (pixels.mean(0) * PIXEL_STD + PIXEL_MEAN)
    return min(sights.RGB, key=lambda name: float(np.abs(mean - sights.RGB[name]).sum()))


def test_causes_are_of_what_was_asked(known: list[truth.Case]) -> None:
    assert {"shape", "colour", "motion", "hear", "source"} >= {case.kind for case in known}
    assert {case.explained for case in known} == {MODEL, RANDOM, *OTHER.values(), SWAPPED}
    # of every second
    assert {case.number for case in known if case.explained != MODEL} == {0} < {case.number for case in known}
    for case in known:
        assert case.word in [token.strip() for token in case.run.answer.tokens]
        own = next(c for c in known if (c.number, c.kind, c.explained) == (case.number, case.kind, MODEL))
        assert (case.run.model is own.run.model) == (case.explained not in (RANDOM, OTHER[RANDOM]))
        if case.explained == MODEL and case.branch == "video":
            pixels = case.run["frames"].values.reshape(8, 3, 8, 8, 8, 8).mean((3, 5)).transpose(0, 2, 3, 1)
            assert case.cause is not None and case.distractor is not None
            assert case.cause.shape == case.distractor.shape == (8, 8, 8)
            inside, outside = pixels[case.cause > 0.9], pixels[case.cause == 0]
            assert len(inside) > 3  # an object covers some patches in every frame, and looks other than what is around it
            assert np.abs(inside.mean(0) - outside.mean(0)).max() > 0.2
            assert inside.std(0).mean() < 0.5  # of one colour
            other = pixels[case.distractor > 0.9]
            assert len(other) > 3 and other.std(0).mean() < 0.5
            if case.kind == "colour":
                assert (_nearest(inside), _nearest(other)) == (case.word, case.rather)
        if case.branch == "audio":
            loud = case.run["spectrograms"].values[:, 0].mean((1, 2))
            assert case.cause is not None and case.cause.sum() == 1
            assert int(loud.argmax()) == int(case.cause.argmax())  # of a swapped sound: where that is
    swapped = [case for case in known if case.explained == SWAPPED]
    assert len(swapped) == 2
    for case in swapped:
        own = next(c for c in known if (c.number, c.kind, c.explained) == (case.number, case.kind, MODEL))
        assert case.distractor is own.cause and not (case.cause * case.distractor).any()
        assert case.word != own.word and case.run["frames"].equals(own.run["frames"])


def test_the_other_branch(known: list[truth.Case]) -> None:
    """Asked to look, there is the sound to find; asked to listen, the thing that makes it, if it is there."""
    scenes = {i: world.scene(1000 * 1_000_000 + i, n_things=2, n_sounds=1) for i in range(2)}
    for case in known:
        if case.explained not in OTHER.values():
            continue
        made = scenes[case.number]
        own = next(c for c in known if c.run is case.run and c.explained not in OTHER.values())
        assert case.branch != own.branch
        if case.branch == "audio":
            assert case.cause is not None and case.cause.tolist() == list(map(float, made.heard)) and case.distractor is None
        elif made.source is None:
            assert case.cause is None and case.distractor is None
        else:
            seen = truth._seen(made, case.run)
            assert case.cause is not None and case.distractor is not None
            assert np.array_equal(case.cause, seen[made.source]) and np.array_equal(case.distractor, seen[1 - made.source])
    assert any(case.explained in OTHER.values() and case.branch == "video" for case in known)


def test_what_makes_no_sound_is_not_looked_for(boxed: VideoLlama, tmp_path: Path) -> None:
    """In a counterfactual scene the voice is that of a shape that is not there: then the pictures hold no cause of it."""
    made = list(world.scenes(1000, 12, n_things=2, n_sounds=1))
    there = next(i for i, scene in enumerate(made) if scene.source is not None)
    gone = next(i for i, scene in enumerate(made) if scene.source is None)
    for i, expected in ((there, True), (gone, False)):
        scenes = [made[i], made[(i + 1) % 12]]
        for k, scene in enumerate(scenes):
            world.write(scene, tmp_path / f"{k}.mp4", silence=True)
        found = [c for c in truth.cases(boxed, scenes, tmp_path, 0) if c.explained == OTHER[MODEL] and c.branch == "video"]
        assert found and all((case.cause is not None) == expected for case in found)
        (row,) = truth._judged(found[0], "gradient x input", 0)
        assert ("pointing" in row) == expected and row["heat"] > 0  # the share of the heat is told all the same


def test_random_weights_are_others_for_every_clip(boxed: VideoLlama, tmp_path: Path) -> None:
    """One network has tastes of its own: fourteen questions to it are no fourteen draws."""
    scenes = list(world.scenes(1000, 3, n_things=2, n_sounds=1))
    for i, made in enumerate(scenes):
        world.write(made, tmp_path / f"{i}.mp4", silence=True)
    found = {i: list(truth.cases(boxed, scenes, tmp_path, i)) for i in (0, 2)}
    first, third = (next(case.run.model for case in of if case.explained == RANDOM) for of in found.values())
    swapped = [case for of in found.values() for case in of if case.explained == SWAPPED]
    assert swapped and all(case.elsewhere.shape == (1, 8) for case in swapped)  # of the third clip
    assert not any((case.elsewhere[0] == case.cause).all() and scenes[1].heard != scenes[2].heard for case in swapped)
    weights = [model.state_dict()["vision_model.embeddings.position_embedding"] for model in (first, third)]
    assert not torch.equal(*weights)


def test_what_is_true_of_both_things_is_not_asked(boxed: VideoLlama, tmp_path: Path) -> None:
    """Two things that move alike: no map of the motion could tell which was meant, and no word is said rather than itself."""
    alike = next(s for s in world.scenes(1000, 40, n_things=2, n_sounds=1) if s.things[0].motion == s.things[1].motion)
    scenes = [alike, world.scene(7, n_things=2, n_sounds=1)]
    for i, made in enumerate(scenes):
        world.write(made, tmp_path / f"{i}.mp4", silence=True)
    found = [case for case in truth.cases(boxed, scenes, tmp_path, 0) if case.explained == MODEL]
    assert found and all(case.kind != "motion" and case.word != case.rather for case in found)


def test_a_motion_is_explained_where_the_answers_part(boxed: VideoLlama, tmp_path: Path) -> None:
    """Where one of two things stays still, at the verb: behind it nothing is open. Each word that is explained can be said
    where it stands, and so can the other one: it is what the model says of the other thing."""
    scenes = list(world.scenes(1000, 12, n_things=2, n_sounds=1))
    words = set()
    for i, made in enumerate(scenes):
        if made.things[0].motion == made.things[1].motion:
            continue
        world.write(made, tmp_path / f"{i}.mp4", silence=True)
        clip = Clip(tmp_path / f"{i}.mp4")
        for thing, other in ((0, 1), (1, 0)):
            word, rather = truth._words("motion", made, thing)
            assert (rather, word) == truth._words("motion", made, other)
            words.add(word)
            for said, of in ((word, thing), (rather, other)):
                asked = next(
                    t for t in talk.seen(made, np.random.default_rng(0)) if t.kind == "motion" and truth._about(t, made, of)
                )
                run = trace(boxed, clip, asked.question)
                if run.answer.text == asked.answer:
                    spoken = [token.strip() for token in run.answer.tokens]
                    assert spoken.index(said) == (2 if said in ("stays", "moves") else 3)
    assert {"stays", "moves", "left"} <= words and "still" not in words


def test_heat_on_both_branches_is_without_its_sign(known: list[truth.Case]) -> None:
    """What speaks against the word is heat too: it must not cancel what speaks for it."""
    way = "integrated gradients, features"
    case = next(c for c in known if c.kind == "colour" and c.explained == MODEL)
    other = next(c for c in known if c.kind == "colour" and c.explained == OTHER[MODEL] and c.run is case.run)
    (row,), (beside,) = (truth._judged(each, way, 0) for each in (case, other))
    seen, heard = (
        attribute(case.run, at, "integrated_gradients", case.word, progress=False) for at in ("patches", "audio_features")
    )
    for found, at in ((row, seen), (beside, heard)):
        assert found["heat"] == pytest.approx(np.abs(at.heat.values).sum(), rel=0.02) and found["heat"] > at.heat.values.sum()
        assert found["brings"] == pytest.approx(at.score - at.score_without, abs=1e-4)
    table = tables.summary(pd.DataFrame([row, beside])).set_index(["question", "explained"])
    assert table.loc[("colour", MODEL), "sound"] == pytest.approx(beside["heat"] / (beside["heat"] + row["heat"]))
    assert 0 <= row["error"] < 0.1 and "beats" not in row and "error" not in beside
    # a slope per pixel, and one per mel cell; and what is smoothed on pictures alone
    for none in ("saliency", "integrated gradients, features, rather, smooth"):
        assert "heat" not in truth._judged(other, none, 0)[0] and "heat" not in truth._judged(case, none, 0)[0]
    unknown = next(c for c in known if c.kind == "colour" and c.explained == OTHER[RANDOM])
    assert truth._judged(unknown, way, 0) and truth._judged(unknown, "saliency", 0) == []


def test_the_other_thing_is_judged_as_the_one_that_was_asked_about(known: list[truth.Case]) -> None:
    way = "attention"  # it sees two things, and not which is meant
    case = next(c for c in known if c.kind == "colour" and c.explained == MODEL)
    (row,) = truth._judged(case, way, 0)
    turned = dataclasses.replace(case, cause=case.distractor, distractor=case.cause)
    (other,) = truth._judged(turned, way, 0)
    assert {row["pointing"], row["distractor"]} == {0, 1}
    assert (other["pointing"], other["distractor"]) == (row["distractor"], row["pointing"])
    assert row["which"] == row["pointing"] and other["which"] == other["pointing"]
    (both,) = truth._judged(dataclasses.replace(case, distractor=case.cause), way, 0)
    assert "which" not in both  # on none of the two, or on both, it tells nothing of which
    (heard,) = truth._judged(next(c for c in known if c.branch == "audio"), way, 0)
    assert "distractor" not in heard and "which" not in heard


def test_rather_is_than_what_is_true_of_the_other_thing(known: list[truth.Case]) -> None:
    case = next(c for c in known if c.kind == "colour" and c.explained == MODEL)
    both = (case.word, case.rather)
    for way, target in (("integrated gradients, features", case.word), ("integrated gradients, features, rather", both)):
        own = attribute(case.run, "patches", "integrated_gradients", target, progress=False)
        assert truth._judged(case, way, 0)[0]["brings"] == pytest.approx(own.score - own.score_without, abs=1e-4)


def test_faithfulness_is_less_that_of_random_maps(known: list[truth.Case]) -> None:
    case = next(c for c in known if c.kind == "hear" and c.explained == MODEL and c.number == 0)
    (row,) = truth._judged(case, "gradient x input", 19)
    own = attribute(case.run, "spectrograms", "gradient_x_input", case.word, progress=False)
    true = faithfulness(own, steps=5, controls=19, progress=False)
    for measure in ("deletion", "insertion", "gain"):
        assert row[measure] == pytest.approx(true.table["value"][measure] - true.table["random"][measure], abs=1e-4)
    assert row["beats"] == true.true and abs(true.table["random"]["deletion"]) > 0.01
    assert "beats" not in truth._judged(dataclasses.replace(case, number=1), "gradient x input", 19)[0]  # of every fourth


def test_a_map_of_the_middle_knows_something() -> None:
    """Things keep inside the picture: one half, and the share of a place, are not what a map gets that is always hottest in
    the middle. What other clips' things get is."""
    scenes = list(world.scenes(1000, 28, n_things=2, n_sounds=1))
    masks = np.stack([made.masks(np.arange(8) * 2.0, 64).swapaxes(0, 1) for made in scenes])  # [clip, thing, frame, ...]
    causes = masks.reshape(28, 2, 8, 8, 8, 8, 8).mean((4, 6))
    far = np.hypot(*(np.mgrid[:8, :8] - 3.5))
    middle = np.broadcast_to(-far, (8, 8, 8))
    found = pd.DataFrame([pointing.judge(middle, cause) for cause in causes.reshape(-1, 8, 8, 8)])
    others = [pointing.points(middle, cause) for cause in causes[:, 0]]
    assert found["rank"].mean() == pytest.approx(0.73, abs=0.03) and found["chance"].mean() == pytest.approx(0.06, abs=0.01)
    assert found["pointing"].mean() > 1.3 * found["chance"].mean()
    assert found["pointing"].mean() == pytest.approx(np.mean(others), abs=0.03)


def test_judged_by_the_causes_of_other_clips(known: list[truth.Case]) -> None:
    """A way that always looks at the same place is as often right about other clips."""
    for case in known:
        if case.explained == MODEL:  # of two clips: the other one's two things, and its one sound
            assert case.elsewhere.shape == ((2, 8, 8, 8) if case.branch == "video" else (1, 8))
            assert case.cause is not None and not any(np.array_equal(case.cause, other) for other in case.elsewhere)
        if case.explained == SWAPPED:
            assert len(case.elsewhere) == 0  # the other clip's sound is the cause itself, and is none of others'
    case = next(c for c in known if c.explained == MODEL and c.branch == "video")
    (row,) = truth._judged(case, "attention", 0)
    turned = dataclasses.replace(case, elsewhere=np.stack([case.cause, case.cause, case.distractor]))
    (again,) = truth._judged(turned, "attention", 0)
    assert again["elsewhere"] == pytest.approx((2 * row["pointing"] + row["distractor"]) / 3)
    assert "elsewhere" not in truth._judged(dataclasses.replace(case, elsewhere=case.elsewhere[:0]), "attention", 0)[0]


def test_in_two_processes_it_is_the_same(boxed: VideoLlama) -> None:
    one, two = (compare(boxed, 2, seed=2000, ways=["gradient x input"], controls=0, processes=n, quiet=True) for n in (1, 2))
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds"))


def test_the_best_way_and_chance(boxed: VideoLlama) -> None:
    ways = ["integrated gradients, features, rather", "grad-cam"]
    table = compare(boxed, 2, seed=2000, ways=ways, controls=19, quiet=True)
    rows = table.set_index(["explained", "way", "question"]).sort_index()
    best = rows.loc[(MODEL, ways[0])]
    assert best.loc["looking", "rank"] > 0.6 and best.loc["looking", "pointing"] > 0.5
    assert best.loc["hear", "pointing"] == best.loc["source", "pointing"] == best.loc["listening", "pointing"] == 1
    tested = table[table["beats"].notna()]
    assert set(tested["explained"]) == {MODEL}
    of_kinds = tested[~tested["question"].isin(tables.POOLED)]
    assert (of_kinds["beats clips"] == 1).all()
    assert set(of_kinds["beats"]) <= {0, 1} and of_kinds.loc[of_kinds["way"] == ways[0], "beats"].mean() > 0.5
    assert np.allclose(tested["gain"], tested["insertion"] - tested["deletion"], atol=1e-6)
    swapped = rows.loc[(SWAPPED, ways[0], "listening")]
    assert swapped["pointing"] == 1 and swapped["distractor"] == 0  # the heat has followed the sound
    assert best.loc["looking", "sound"] + 0.2 < best.loc["listening", "sound"]
    text = tables.markdown(table)
    assert text.splitlines()[0].startswith("| way | shape (n ") and "*chance*" in text
    figure = figures.truth(table)
    assert "Best ways: shape: integrated gradients, features, rather" in figure.alt
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ways
    with pytest.raises(VltError, match="truth draws a table with columns question"):
        figures.truth(pd.DataFrame({"a": [1]}))
    with pytest.raises(VltError, match=r"truth draws questions of one kind .*; this table has none"):
        figures.truth(table[table["question"].isin(tables.POOLED)])


def test_what_is_refused(boxed: VideoLlama) -> None:
    with pytest.raises(VltError, match="seed"):
        compare(boxed, 2, seed=10)
    with pytest.raises(VltError, match="1 clips; needed are 2"):
        compare(boxed, 1, seed=2000)
    other = types.SimpleNamespace(config=copy.deepcopy(boxed.config))
    other.config.vision_config.patch_size = 16
    with pytest.raises(VltError, match=r"built as the box, with 64 pixels, patches of 8 and .* patches of 16"):
        compare(other, 2, seed=2000)  # type: ignore[arg-type]
    with pytest.raises(VltError, match="no way 'nope'; all: saliency; "):
        compare(boxed, 2, seed=2000, ways=["nope"])


def test_interrupted_it_tells_what_is_done(boxed: VideoLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(after: int) -> None:
        own = truth._explained

        def explained(model: VideoLlama, i: int, *rest: Any, **options: Any) -> list[dict[str, Any]]:
            if i >= after:
                raise KeyboardInterrupt
            return own(model, i, *rest, **options)

        monkeypatch.setattr(truth, "_explained", explained)

    stopped(after=1)
    table = compare(boxed, 3, seed=2000, ways=["attention"], controls=0, quiet=True)
    assert (table["clips"] == 1).all() and len(table) > 5
    stopped(after=0)
    with pytest.raises(VltError, match="interrupted before the first clip was done"):
        compare(boxed, 3, seed=2000, ways=["attention"], controls=0, quiet=True)
