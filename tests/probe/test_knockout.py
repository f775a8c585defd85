"""Attention knockout is a mask written by hand, in one pass and while decoding; edits are in force at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.probe.conftest import ATTENTIONS, PLACES, QUESTION, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.probe.attention import Tap
from vlt.probe.edits import Edit
from vlt.probe.trace import Trace


def logits_by_hand(run: Trace, prefix: Tensor, edges: Tensor, layers: list[int]) -> Tensor:
    """The language model without any tap: in some layers its mask [1, 1, token, token] lacks these edges, too."""
    n = prefix.shape[1]
    causal = torch.full((n, n), torch.finfo(prefix.dtype).min).triu(1)[None, None]
    cut = causal.masked_fill(edges[None, None, :n, :n], torch.finfo(prefix.dtype).min)
    decoder: Any = run.model.language_model.get_decoder()

    def masked(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"attention_mask": cut}

    handles = [decoder.layers[i].register_forward_pre_hook(masked, with_kwargs=True) for i in layers]
    try:
        return run.model.language_model(inputs_embeds=prefix, attention_mask=causal, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def answer_by_hand(run: Trace, edges: Tensor, layers: list[int], count: int) -> list[int]:
    """Greedy, every step from the beginning: no cache."""
    prefix, ids = run.stage("prefix")[:, : run.row.begin], []
    embedded = run.model.get_input_embeddings()
    for _ in range(count):
        ids.append(int(logits_by_hand(run, prefix, edges, layers)[-1].argmax()))
        prefix = torch.cat([prefix, embedded(torch.tensor([[ids[-1]]]))], dim=1)
    return ids


def edges_between(run: Trace, by: list[int], seen: list[int]) -> Tensor:
    edges = torch.zeros(run.tokens.size + 60, run.tokens.size + 60, dtype=torch.bool)
    edges[torch.tensor(by)[:, None], torch.tensor(seen)] = True
    return edges


def spans(run: Trace, length: int) -> dict[str, list[int]]:
    """Where things are in the box's prompt for this question, counted by hand, and in an answer of so many tokens."""
    begin = run.row.begin
    assert (begin, run.tokens.size) == (90, 96)
    groups = {"audio": list(range(22, 30)), "video": list(range(47, 63)), "question": list(range(82, 87))}
    spoken = list(range(begin, begin + length))
    return groups | {"answer": spoken, "answering": [89, *spoken[:-1]], "last": [89], "all": list(range(begin + length))}


CUTS = {
    "sound, by all else": ({"seen": "audio"}, None, "audio", [0, 1, 2, 3]),
    "question, by all else": ({"seen": "question"}, None, "question", [0, 1, 2, 3]),
    "sound, where the answer is predicted": ({"seen": "audio", "by": "answering"}, "answering", "audio", [0, 1, 2, 3]),
    "question, in a window of layers": ({"seen": "question", "by": "last", "layers": "1:3"}, "last", "question", [1, 2]),
    "sound, in two layers": ({"seen": "audio", "by": "question", "layers": [0, 3]}, "question", "audio", [0, 3]),
    "video, in the first layer": ({"seen": "video", "layers": 0}, None, "video", [0]),
    "the answer, by itself": ({"seen": "answer", "by": "answer", "layers": [1]}, None, None, [1]),
    "numbers": ({"seen": [22, 23], "by": [88, 89]}, [88, 89], [22, 23], [0, 1, 2, 3]),
}


def cut(run: Trace, name: str, length: int) -> tuple[Edit, Tensor, list[int]]:
    asked, by, seen, layers = CUTS[name]
    known = spans(run, length)
    if name == "the answer, by itself":
        edges = edges_between(run, known["answer"], known["answer"])
        return edits.knockout(**asked), edges, layers
    columns = known[seen] if isinstance(seen, str) else seen
    rows = known[by] if isinstance(by, str) else by or [i for i in known["all"] if i not in columns]
    return edits.knockout(**asked), edges_between(run, rows, columns), layers


@pytest.mark.parametrize("name", CUTS)
def test_a_knockout_is_a_mask_written_by_hand(bell: Trace, name: str) -> None:
    edit, edges, layers = cut(bell, name, len(bell.answer.ids))
    again = bell.edited(edit, answer=bell.answer.text)
    expected = logits_by_hand(bell, bell.stage("prefix"), edges, layers)
    assert (again.stage("logits")[0] - expected).abs().max() <= 1e-5
    assert (again.stage("logits") - bell.stage("logits")).abs().max() > 1e-3
    n = bell.tokens.size
    there = int((edges[:n, :n] & torch.ones(n, n, dtype=torch.bool).tril()).sum()) * len(layers)
    assert list(again.fired.values()) == [there]


@pytest.mark.parametrize("name", CUTS)
def test_a_knockout_holds_while_an_answer_is_decoded(bell: Trace, name: str) -> None:
    """With the cache as without."""
    edit, edges, layers = cut(bell, name, length=50)
    again = bell.rerun(edit)
    ids = list(again.answer.ids)
    assert answer_by_hand(bell, edges, layers, len(ids)) == ids
    assert again.answer.ended == "stop"


@pytest.mark.parametrize("which", ["bell", "grouped_run"])
def test_attention_that_is_cut_is_zero_and_the_rest_is_shared(request: pytest.FixtureRequest, which: str) -> None:
    run: Trace = request.getfixturevalue(which)
    again = run.edited(edits.knockout("audio", by="answering", layers="1:3"), answer=run.answer.text)
    rows, columns = run.tokens.find("answering"), run.tokens.find("audio")
    for layer, (name, array) in enumerate(again.attention("language_model.*.self").items()):
        between = array.values[:, rows][:, :, columns]
        assert (not between.any()) == (layer in (1, 2)), name
        np.testing.assert_allclose(array.values.sum(-1), 1, atol=1e-6)
    first, plain = again.attention("language_model.1.self").values, run.attention("language_model.1.self").values
    kept = np.setdiff1d(np.arange(run.tokens.size), columns)
    shared = plain[:, rows][:, :, kept] / plain[:, rows][:, :, kept].sum(-1, keepdims=True)
    np.testing.assert_allclose(first[:, rows][:, :, kept], shared, atol=1e-6)


def test_a_knockout_with_grouped_queries(grouped_run: Trace) -> None:
    run = grouped_run
    again = run.edited(edits.knockout("video", by="question", layers=[1, 2]), answer=run.answer.text)
    edges = edges_between(run, run.tokens.find("question").tolist(), run.tokens.find("video").tolist())
    expected = logits_by_hand(run, run.stage("prefix"), edges, [1, 2])
    assert (again.stage("logits")[0] - expected).abs().max() <= 1e-5
    assert (again.stage("logits") - run.stage("logits")).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("part", "stage", "needs", "queries", "seen", "columns"),
    [
        ("video_qformer", "video_queries", "frame_tokens", "video_query_tokens", "frame 3", range(24, 32)),
        ("audio_qformer", "audio_queries", "segment_tokens", "audio_query_tokens", "audio 2-4s", [1]),
        ("image_qformer", "image_queries", "patches", "image_query_tokens", "row 2", range(17, 25)),
    ],
)
def test_a_knockout_of_what_queries_look_at(bell: Trace, part, stage, needs, queries, seen, columns) -> None:
    """As the Q-Former's own mask of what it looks at would have it."""
    model, given = bell.model, bell.stage(needs)
    given = given[0] if part == "image_qformer" else given
    mask = torch.ones(given.shape[:2])
    mask[:, list(columns)] = 0
    expected = getattr(model, part)(
        query_embeds=getattr(model, queries).expand(len(given), -1, -1),
        encoder_hidden_states=given,
        encoder_attention_mask=mask,
    ).last_hidden_state
    again = bell.rerun(edits.knockout(seen, at=f"{part}.*.cross"))
    value = again.stage(stage).reshape(expected.shape)
    assert (value - expected).abs().max() <= 1e-5
    assert (value - bell.stage(stage).reshape(expected.shape)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_can_be_cut(bell: Trace, name: str) -> None:
    """At one edge: the last row no longer looks at the first column."""
    site = PLACES[name]
    rows, columns = (bell.tokens.size if a.name == "token" else a.size for a in bell.labels.seen(site))
    again = bell.edited(edits.knockout([0], by=[rows - 1], at=name), answer=bell.answer.text)
    array, plain = again.attention(name).values, bell.attention(name).values
    assert not array[..., rows - 1, 0].any()
    assert array[..., rows - 1, 1:].sum(-1) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(array[..., : rows - 1, :], plain[..., : rows - 1, :])
    inner = int(np.prod([axis.size for axis in bell.axes_of(name) if axis.name in site.inner]))
    assert sum(again.fired.values()) == inner
    assert columns == array.shape[-1]


@pytest.mark.parametrize("name", [n for n in ATTENTIONS if n.endswith(".0.self")])
def test_what_is_not_looked_at_still_looks_at_itself(bell: Trace, name: str) -> None:
    """By default everything else is kept from looking; also in ImageBind, whose patches look at one key more than they are."""
    again = bell.edited(edits.knockout([3], at=name), answer=bell.answer.text)
    array, plain = again.attention(name).values, bell.attention(name).values
    others = [i for i in range(array.shape[-2]) if i != 3]
    assert not array[..., others, 3].any()
    np.testing.assert_array_equal(array[..., 3, :], plain[..., 3, :])
    assert array[..., 3, 3].all()


REFUSED = {
    "blind": (lambda: edits.knockout("all", by="all"), "nothing to look at; cut less"),
    "the first token": (lambda: edits.knockout([0], by=[0]), "nothing to look at"),
    "queries blind": (lambda: edits.knockout("frame_token", at="video_qformer.0.cross"), "nothing to look at"),
    "nothing to cut": (lambda: edits.knockout("answer", by="question"), "did nothing"),
    "no attention": (lambda: edits.knockout("audio", at="language_model.2"), "is not one of self, cross"),
    "a stage": (lambda: edits.knockout("audio", at="frames"), "can stand at attentions"),
    "no layer": (lambda: edits.knockout("audio", layers=[7]), "layer .*7.* was asked for; there are 4"),
    "no phrase": (lambda: edits.knockout("smell"), "has no 'smell'"),
    "a frame": (lambda: edits.knockout("frame 2"), "ask at the stage 'frame_tokens'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_knockouts_that_cannot_be_are_refused(bell: Trace, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(VltError, match=message):
        bell.rerun(make())


# ------------------------------------------------------------------ edits while an answer is decoded

DECODED = {
    "a block": lambda: edits.scale("language_model.1", 1.2),
    "a block of words": lambda: edits.zero("language_model.2", token="text"),
    "the answer's own": lambda: edits.zero("language_model.0.mlp", token="answer"),
    "where it is predicted": lambda: edits.scale("language_model.1.self", 0.0, token="answering"),
    "a head": lambda: edits.zero("language_model.2.self", head=1),
    "an mlp": lambda: edits.scale("language_model.3.mlp", 0.7),
    "a function": lambda: edits.custom("language_model.0", lambda value: value.roll(3, dims=-1)),
    "soft tokens": lambda: edits.noise("prefix", size=2.0, token="audio"),
    "noise": lambda: edits.noise("language_model.1", size=1.0, token="question"),
    "the whole prefix": lambda: edits.scale("prefix", 3.0),
    "noise on the whole prefix": lambda: edits.noise("prefix", size=0.5),
    "the prefix in another order": lambda: edits.reverse("prefix", axis="token"),
    "another clip's": lambda: edits.swap("language_model.[01]", shipped("buzz"), token="audio"),
    "several": lambda: [edits.knockout("audio", by="answering"), edits.zero("language_model.1.mlp", token="last")],
    "a word of the prompt": lambda: edits.zero("language_model.0", word="answer"),
    "a function of all tokens": lambda: edits.custom("language_model.2", lambda x: x - 0.1 * x.mean(0, keepdim=True)),
    "a function of heads": lambda: edits.custom(
        "language_model.1.self", lambda x: x.flip(0), token=["audio", "answer"], head=[1, 2]
    ),
}


WHOLE = ("the whole prefix", "noise on the whole prefix", "the prefix in another order")


@pytest.mark.parametrize("name", DECODED)
def test_one_pass_over_an_answer_is_as_its_decoding(bell: Trace, name: str) -> None:
    """The same logits at every step, with the edits in force. What hangs on all tokens at once, those of the answer too,
    cannot be the same: it is refused, or means the prompt's."""
    steps: list[Tensor] = []
    again = bell.edited(DECODED[name]())
    head = bell.model.get_output_embeddings()
    try:
        with Tap(bell.model, outputs={head: [lambda output: steps.append(output[0, -1])]}):
            ids = again.answer.ids
    except VltError as error:
        assert name in WHOLE
        assert "yet to be made" in str(error)
        return
    logits = again.stage("logits")[0, again.row.begin - 1 : -1]
    assert len(logits) == len(ids) <= len(steps)
    for expected, step in zip(logits, steps, strict=False):
        assert (expected - step).abs().max() <= 1e-4
    assert ids != bell.answer.ids or np.abs(again.logprobs.values - bell.logprobs.values).max() > 1e-4


def test_an_answer_under_a_knockout_reads_its_own_words(bell: Trace) -> None:
    """Cut off from all that was asked and heard, it still sees what it said."""
    again = bell.rerun(edits.knockout("answer 0", by="answer 1-400", layers="all"))
    assert again.answer.tokens[0] == bell.answer.tokens[0]
    rows = again.attention("language_model.0.self", rows="answer", columns=["answer 0"], mean=True).values
    assert rows[0] > 0
    assert not rows[1:].any()
    assert again.question == QUESTION
