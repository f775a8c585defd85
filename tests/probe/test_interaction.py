"""Shapley values and interactions: games worked out by hand, and the box's own numbers."""

from __future__ import annotations

import itertools

import pytest

from tests.probe.conftest import QUESTION, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.probe.interaction import ABSENT, _index, interaction
from vlt.probe.trace import Trace, trace

PLAYERS = frozenset("abc")
SETS = [frozenset(s) for n in range(4) for s in itertools.combinations("abc", n)]

GAMES = {
    "each brings its own": (
        lambda s: 5 + 2 * ("a" in s) + 3 * ("b" in s) - ("c" in s),
        {"a": 2, "b": 3, "c": -1, "ab": 0, "ac": 0, "bc": 0, "abc": 0},
    ),
    "only all three": (
        lambda s: 6 * (len(s) == 3),
        # of six orders each comes last in two; the pair's interaction is 6 where the third is there, and 0 where not
        {"a": 2, "b": 2, "c": 2, "ab": 3, "ac": 3, "bc": 3, "abc": 6},
    ),
    "two of them, and a third for itself": (
        lambda s: 4 * ("a" in s and "b" in s) + ("c" in s),
        {"a": 2, "b": 2, "c": 1, "ab": 4, "ac": 0, "bc": 0, "abc": 0},
    ),
    "one stands in for the other": (
        lambda s: 4 * ("a" in s or "b" in s),
        {"a": 2, "b": 2, "c": 0, "ab": -4, "ac": 0, "bc": 0, "abc": 0},
    ),
    "one hinders the two": (
        lambda s: 6 * (s == frozenset("ab")),
        # a: 6 comes with it in the order b a c only; c takes it away in the two orders in which it is last
        {"a": 1, "b": 1, "c": -2, "ab": 3, "ac": -3, "bc": -3, "abc": -6},
    ),
    "a glove game": (
        lambda s: 6 * ("a" in s and len(s) > 1),
        {"a": 4, "b": 1, "c": 1, "ab": 3, "ac": 3, "bc": -3, "abc": -6},
    ),
}


@pytest.mark.parametrize("name", GAMES)
def test_games_worked_out_by_hand(name: str) -> None:
    game, expected = GAMES[name]
    value = {s: float(game(s)) for s in SETS}
    found = {"".join(group): _index(frozenset(group), PLAYERS, value) for group in map(sorted, SETS[1:])}
    assert found == pytest.approx(expected)
    assert found["a"] + found["b"] + found["c"] == pytest.approx(value[PLAYERS] - value[frozenset()])


def test_a_value_is_the_mean_over_all_orders() -> None:
    value = {s: float(i * i + 3 * len(s)) for i, s in enumerate(SETS)}
    for player in "abc":
        added = []
        for order in itertools.permutations("abc"):
            before = frozenset(order[: order.index(player)])
            added.append(value[before | {player}] - value[before])
        assert _index(frozenset(player), PLAYERS, value) == pytest.approx(sum(added) / 6)


def test_the_box_by_one_run_after_the_other(bell: Trace) -> None:
    """Every set of what is there, run alone; from it the values by all orders, and the interaction of two by hand."""
    found = interaction(bell)
    names = ["video", "sound", "question"]
    assert list(found.index[:3]) == names
    value = {}
    for n in range(4):
        for there in itertools.combinations(names, n):
            away = [ABSENT[name] for name in names if name not in there]
            run = bell.edited(away) if away else bell
            value[frozenset(there)] = run.score(bell.answer.text)
    told = found.attrs["values"]
    assert told == pytest.approx({" + ".join(n for n in names if n in s) or "none": v for s, v in value.items()}, abs=1e-3)
    for player in names:
        added = []
        for order in itertools.permutations(names):
            before = frozenset(order[: order.index(player)])
            added.append(value[before | {player}] - value[before])
        assert found[player] == pytest.approx(sum(added) / 6, abs=1e-3)
    assert found[names].sum() == pytest.approx(told["video + sound + question"] - told["none"], abs=1e-4)
    assert told["video + sound + question"] == pytest.approx(float(bell.logprobs.sum()), abs=1e-4)
    pair = [
        told[f"video + sound{third}"] - told[f"video{third}"] - told[f"sound{third}"] + without
        for third, without in (("", told["none"]), (" + question", told["question"]))
    ]
    assert found["video x sound"] == pytest.approx(sum(pair) / 2, abs=1e-4)
    assert set(found.index) == {*names, "video x sound", "video x question", "sound x question", "video x sound x question"}
    assert found.attrs["absent"] == {name: str(edit) for name, edit in ABSENT.items()}
    assert found["sound"] > 1 > abs(found["video"] / found["sound"])  # what is heard is heard


def test_a_question_that_is_away_is_a_question_nobody_looks_at(bell: Trace) -> None:
    """Neither the answer nor the rest of the prompt: which words stand there makes no difference."""
    told = [interaction(trace(bell.model, bell.clip, asked, answer="I hear a bell.")).attrs["values"] for asked in OTHER_WORDS]
    assert told[0]["video + sound"] == pytest.approx(told[1]["video + sound"], abs=1e-4)
    assert abs(told[0]["video + sound + question"] - told[1]["video + sound + question"]) > 1


OTHER_WORDS = ("What do you hear?", "What do you see?")  # as many tokens


def test_the_size_of_a_batch_changes_nothing(bell: Trace) -> None:
    assert interaction(bell, batch=3).to_dict() == pytest.approx(interaction(bell).to_dict(), abs=1e-3)


def test_who_does_the_same_is_worth_the_same(bell: Trace) -> None:
    """Two whose going away is the same edit: the first to go takes all away."""
    gone = edits.scale("audio_prefix", 0.0)
    found = interaction(bell, absent={"video": gone, "sound": gone, "question": edits.knockout("question")})
    assert found["video"] == pytest.approx(found["sound"], abs=1e-4)
    assert found["video x question"] == pytest.approx(found["sound x question"], abs=1e-4)


def test_what_it_means_to_be_away_can_be_said(bell: Trace) -> None:
    told = interaction(bell, absent=ABSENT | {"sound": edits.without("audio")}).attrs["values"]
    assert told["video + question"] == pytest.approx(bell.rerun(edits.without("audio")).score(bell.answer.text), abs=1e-3)
    with pytest.raises(VltError, match=r"\{name: edit\}; got 'bell'"):
        interaction(bell, "bell")
    with pytest.raises(VltError, match="absent has 'smell'"):
        interaction(bell, absent=ABSENT | {"smell": edits.mute()})
    with pytest.raises(VltError, match="does not tell what it means that 'sound' is not there"):
        interaction(bell, absent={"video": edits.blank(), "question": edits.knockout("question")})


@pytest.mark.parametrize(("clip", "branch"), [("silent", "video"), ("sound_only", "sound")])
def test_clips_with_one_branch(bell: Trace, clip: str, branch: str) -> None:
    run = trace(bell.model, shipped(clip), QUESTION)
    found = interaction(run)
    assert list(found.index) == [branch, "question", f"{branch} x question"]
    told = found.attrs["values"]
    assert set(told) == {"none", branch, "question", f"{branch} + question"}
    assert found[branch] + found["question"] == pytest.approx(told[f"{branch} + question"] - told["none"], abs=1e-4)


def test_of_an_edited_run(bell: Trace) -> None:
    again = bell.rerun(edits.zero("frame_position"))
    told = interaction(again).attrs["values"]
    assert told["video + sound + question"] == pytest.approx(float(again.logprobs.sum()), abs=1e-4)
