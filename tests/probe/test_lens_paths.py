"""Lens and paths are what their definitions say, on models worked out by hand and on the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from tests.conftest import stand_in
from tests.probe.conftest import PLACES, Recorder, module_names, shipped, whole
from vlt import edits
from vlt.errors import VltError
from vlt.model.video_llama import VideoLlama
from vlt.probe.lens import lens, lens_of, nearest_words
from vlt.probe.paths import METHODS, Flow, path, relevance, rollout
from vlt.probe.trace import Trace, trace

PARTS = list(dict.fromkeys(site.part for site in PLACES.values() if site.columns))

# ------------------------------------------------------------------ lens


def by_hand(run: Trace, layer: int) -> Tensor:
    """The residual stream of a layer, from transformers' own hidden states, through norm and output embedding."""
    out = run.model.language_model(inputs_embeds=run.stage("prefix"), output_hidden_states=True, use_cache=False)
    states = [out.hidden_states[0][0], *(state[0] for state in out.hidden_states[1:])]
    norm, head = run.model.language_model.get_decoder().norm, run.model.get_output_embeddings()
    stream = states[layer + 1] if layer == 3 else norm(states[layer + 1])  # transformers gives the last one normed
    return head(stream).log_softmax(-1)


@pytest.mark.parametrize("layer", range(-1, 4))
def test_the_lens_is_norm_and_output_embedding(bell: Trace, layer: int) -> None:
    places = bell.tokens.find("answering")
    log = by_hand(bell, layer)[places]
    found = lens(bell, layers=layer, k=3)
    assert found.logprob.dims == ("layer", "token", "rank")
    assert found.token.values.tolist() == places.tolist()
    top = log.topk(3, dim=-1)
    np.testing.assert_allclose(found.logprob.values[0], top.values.numpy(), atol=1e-4)
    words = [[bell.model.pieces([i])[0] for i in row] for row in top.indices.tolist()]
    assert found.prediction.values[0].tolist() == words
    one = lens_of(bell, ["bell", "buzz"], layers=layer)
    ids = [bell.model.tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in ("bell", "buzz")]
    np.testing.assert_allclose(one.values[0], log[:, ids].numpy(), atol=1e-4)


def test_the_lens_at_the_last_layer_is_what_is_said(bell: Trace) -> None:
    log = bell.stage("logits")[0].log_softmax(-1)
    found = lens(bell, "all", layers=3, k=1)
    np.testing.assert_allclose(found.logprob.values[0, :, 0], log.max(-1).values.numpy(), atol=1e-6)
    said = lens(bell, layers=3, k=1).prediction.values[0, :, 0].tolist()
    assert said == list(bell.answer.tokens)
    whole_lens = lens(bell, k=1)
    assert whole_lens.layer.values.tolist() == [-1, 0, 1, 2, 3]
    assert whole_lens.word.values.tolist() == bell.tokens.coordinates["word"][89:95].tolist()


def test_the_lens_sees_edits(bell: Trace) -> None:
    edited = bell.edited(edits.zero("language_model.1", token="last"), answer=bell.answer.text)
    plain, other = (lens_of(run, ["bell"], tokens="last").values[:, 0, 0] for run in (bell, edited))
    np.testing.assert_array_equal(plain[:2], other[:2])  # the prefix, and layer 0
    assert other[2] == pytest.approx(-np.log(bell.model.config.text_config.vocab_size), abs=1e-4)  # of nothing, all alike
    assert plain[3] != other[3]


LAYERS = [
    ("all", [-1, 0, 1, 2, 3]),
    (-1, [-1]),
    ([2, 0], [2, 0]),
    ("1:3", [1, 2]),
    ("2:", [2, 3]),
    (slice(0, 2), [0, 1]),
    (range(1, 3), [1, 2]),
]


@pytest.mark.parametrize(("layers", "expected"), LAYERS)
def test_layers_of_the_lens(bell: Trace, layers: object, expected: list[int]) -> None:
    assert lens(bell, "last", layers=layers).layer.values.tolist() == expected


@pytest.mark.parametrize("layers", [4, -2, [0, 9], "2:2", [], "some", 1.5, slice(3, 1), None])
def test_layers_that_are_not_there_are_refused(bell: Trace, layers: object) -> None:
    with pytest.raises(VltError, match="layer") as error:
        lens(bell, "last", layers=layers)
    assert "\n" not in str(error.value)


def test_a_window_of_layers_may_begin_at_the_prefix_or_is_refused(bell: Trace) -> None:
    try:
        found = lens(bell, "last", layers="-1:2")
    except VltError:
        return
    assert found.layer.values.tolist() == [-1, 0, 1]


def test_what_the_lens_cannot_read_is_refused(bell: Trace) -> None:
    for k in (0, 852):
        with pytest.raises(VltError, match="has words 1 to 851"):
            lens(bell, k=k)
        with pytest.raises(VltError, match="has words 1 to 851"):
            nearest_words(bell, k=k)
    with pytest.raises(VltError, match="'zebra' is not one token"):
        lens_of(bell, ["bell", "zebra"])
    with pytest.raises(VltError, match="ask at the stage 'frame_tokens'"):
        lens(bell, "frame 3")


def test_nearest_words_are_by_cosine(bell: Trace) -> None:
    found = nearest_words(bell, "audio", k=4)
    table = bell.model.get_input_embeddings().weight.double().numpy()
    soft = bell.stage("audio_prefix")[0].double().numpy()
    cosine = (soft @ table.T) / np.linalg.norm(soft, axis=1)[:, None] / np.linalg.norm(table, axis=1)
    np.testing.assert_allclose(found.cosine.values, -np.sort(-cosine, axis=1)[:, :4], atol=1e-5)
    best = [bell.model.pieces([int(i)])[0] for i in cosine.argmax(1)]
    assert found.nearest.values[:, 0].tolist() == best
    assert found.token.values.tolist() == list(range(22, 30))
    words = nearest_words(bell, "question", k=1)  # a word is nearest to itself
    np.testing.assert_allclose(words.cosine.values, 1, atol=1e-5)
    assert words.nearest.values[:, 0].tolist() == words.word.values.tolist()


# ------------------------------------------------------------------ two rows, by hand


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def test_the_lens_of_one_word_is_of_the_word(bell: Trace) -> None:
    found = lens_of(bell, "bell")
    assert found.target.values.tolist() == ["bell"]
    np.testing.assert_array_equal(found.values, lens_of(bell, ["bell"]).values)


def test_rollout_by_hand() -> None:
    flow = Flow()
    flow.rolled(matrix((0.5, 0.5), (0.25, 0.75)), cross=False)
    torch.testing.assert_close(flow.own, matrix((0.75, 0.25), (0.125, 0.875)))
    assert flow.seen is None
    flow.rolled(matrix((1, 0), (0.5, 0.5)), cross=True)
    torch.testing.assert_close(flow.own, matrix((0.375, 0.125), (0.0625, 0.4375)))
    torch.testing.assert_close(flow.seen, matrix((0.5, 0), (0.25, 0.25)))
    flow.rolled(matrix((0, 1), (1, 0)), cross=False)
    torch.testing.assert_close(flow.own, matrix((0.21875, 0.28125), (0.21875, 0.28125)))
    torch.testing.assert_close(flow.seen, matrix((0.375, 0.125), (0.375, 0.125)))
    flow.rolled(matrix((0, 1), (1, 0)), cross=True)  # half of what was seen, and half of what is
    torch.testing.assert_close(flow.seen, matrix((0.1875, 0.5625), (0.6875, 0.0625)))


def test_rollout_with_a_key_that_is_nobodys() -> None:
    flow = Flow()
    flow.rolled(matrix((0.5, 0.25, 0.25), (0, 0, 1)), cross=False)
    torch.testing.assert_close(flow.own, matrix((0.75, 0.125), (0, 0.5)))


def test_relevance_by_hand() -> None:
    flow = Flow()
    flow.related(matrix((0.2, 0), (0.1, 0.3)), cross=False)
    torch.testing.assert_close(flow.own, matrix((1.2, 0), (0.1, 1.3)))
    # of what was added, each row's shares: (1, 0) and (1/4, 3/4); with the identity (2, 0) and (1/4, 7/4)
    flow.related(matrix((0.4, 0.2), (0, 0.6)), cross=True)
    torch.testing.assert_close(flow.seen, matrix((0.8, 0.55), (0, 1.05)))
    flow.related(matrix((0, 0.5), (0, 0)), cross=False)
    torch.testing.assert_close(flow.own, matrix((1.25, 0.65), (0.1, 1.3)))
    torch.testing.assert_close(flow.seen, matrix((0.8, 1.075), (0, 1.05)))


def test_relevance_of_rows_to_which_nothing_was_added() -> None:
    flow = Flow()
    flow.related(matrix((0, 0), (0, 0)), cross=False)
    flow.related(matrix((0.3, 0.1), (0.2, 0)), cross=True)
    torch.testing.assert_close(flow.seen, matrix((0.3, 0.1), (0.2, 0)))
    assert flow.seen.isfinite().all()


# ------------------------------------------------------------------ a model that looks at everything alike


def blank_minded() -> VideoLlama:
    """Queries are 0, so that all that may be looked at is looked at alike."""
    model = stand_in()
    for name, parameter in model.named_parameters():
        if ("qformer" in name and ".query." in name) or "q_proj" in name:
            parameter.zero_()
        if name.endswith(("qkv.weight", "qkv.bias")):
            parameter[: len(parameter) // 3] = 0
    return model


@pytest.fixture(scope="module")
def alike() -> Trace:
    return trace(blank_minded(), shipped("two_bell"), "What?", answer="A bell.")


def test_every_row_of_it_looks_at_all_alike(alike: Trace) -> None:
    for name, array in alike.attention("**").items():
        allowed = np.tri(*array.shape[-2:]) if name.startswith("language") else np.ones(array.shape[-2:])
        expected = allowed / allowed.sum(-1, keepdims=True)
        np.testing.assert_allclose(array.values, np.broadcast_to(expected, array.shape), atol=1e-6)


def test_the_path_where_all_is_looked_at_alike(alike: Trace) -> None:
    """Half of what a row holds stays its own in every layer; the other half is the mean of all it may look at."""
    found = path(alike, word=2, method="rollout")
    n = alike.tokens.size
    step = 0.5 * np.tri(n) / np.arange(1, n + 1)[:, None] + 0.5 * np.eye(n)
    tokens = np.linalg.matrix_power(step, 4)[alike.row.begin + 1]
    np.testing.assert_allclose(found.tokens.values, tokens, atol=1e-5)
    video, audio = (tokens[alike.tokens.find(branch)].sum() for branch in ("video", "audio"))
    # two layers that look: half, and half of the other half; of 64 frame tokens
    np.testing.assert_allclose(found.frame_tokens.values, video * 0.75 / 64, rtol=1e-4)
    # one that looks: half, of 65 patches, and the 8 queries of a frame; among patches nothing changes where all are alike
    np.testing.assert_allclose(found.video.values, 8 * video * 0.75 / 64 * 0.5 / 65, rtol=1e-4)
    np.testing.assert_allclose(found.segments.values, audio * 0.75 / 8, rtol=1e-4)
    # a class token and 96 patches look at 98 keys, of which one is nobody's; the class token is what is read
    step = 0.5 * np.full((97, 97), 1 / 98) + 0.5 * np.eye(97)
    patches = np.linalg.matrix_power(step, 2)[0, 1:]
    np.testing.assert_allclose(found.audio.values, audio * 0.75 / 8 * patches.reshape(8, 12)[None].repeat(8, 0), rtol=1e-4)


# ------------------------------------------------------------------ the box, the same once more in plain numpy


def kinds(part: str) -> list[tuple[str, bool]]:
    return [(name, site.kind == "cross") for name, site in PLACES.items() if site.part == part and site.columns]


def in_numpy(weighted: dict[str, np.ndarray], part: str, method: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Part by part, one of its frames (or segments) after the other: what its rows hold of themselves, and of what is
    looked at. weighted: of every attention, [b, row, column]."""
    owns, seens = [], []
    for b in range(len(weighted[kinds(part)[0][0]])):
        own: np.ndarray = np.eye(weighted[kinds(part)[0][0]].shape[1])
        seen = None
        for name, cross in kinds(part):
            a = weighted[name][b].astype(float)
            if method == "rollout" and cross:
                seen = (a + (0 if seen is None else seen)) / 2
                own = own / 2
            elif method == "rollout":
                a = (a[:, : len(a)] + np.eye(len(a))) / 2
                own, seen = a @ own, None if seen is None else a @ seen
            elif cross:
                added = own - np.eye(len(own))
                sums = added.sum(1, keepdims=True)
                shares = np.divide(added, sums, out=np.zeros_like(added), where=sums > 0) + np.eye(len(own))
                seen = (0 if seen is None else seen) + shares.T @ a
            else:
                a = a[:, : len(a)]
                own, seen = own + a @ own, None if seen is None else seen + a @ seen
        owns.append(own)
        seens.append(seen)
    return np.stack(owns), None if seens[0] is None else np.stack(seens)


WORD = 3  # "bell"


@pytest.fixture(scope="module")
def weighted(bell: Trace) -> dict[str, dict[str, np.ndarray]]:
    """Attention for each method: the mean over heads, alone or times its gradient where that is above 0."""
    recorder, names = Recorder(bell.model, graph=True), module_names(bell)
    with torch.enable_grad():
        logits = recorder(whole(bell), ["logits"])["logits"][0]
        probabilities = [recorder.probabilities[names[name]] for name in names if PLACES[name].columns]
        slopes = torch.autograd.grad(logits[bell.row.begin - 1 + WORD, bell.answer.ids[WORD]], probabilities)
    at = [name for name in names if PLACES[name].columns]
    pairs = {name: (p.detach(), slope) for name, p, slope in zip(at, probabilities, slopes, strict=True)}
    return {
        "rollout": {name: p.mean(1).numpy() for name, (p, _) in pairs.items()},
        "relevance": {name: (p * slope).clamp(min=0).mean(1).numpy() for name, (p, slope) in pairs.items()},
    }


def near(value: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(value, expected, atol=5e-4 * np.abs(expected).max(), rtol=1e-3)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_part_is_as_in_numpy(bell: Trace, weighted: dict, part: str, method: str) -> None:
    own, seen = in_numpy(weighted[method], part, method)
    found = rollout(bell, part) if method == "rollout" else relevance(bell, part, WORD)
    expected = own if seen is None else seen
    near(found.values.reshape(expected.shape), expected)
    assert found.values.min() >= 0
    if method == "rollout" and seen is None and part != "imagebind":
        np.testing.assert_allclose(found.values.sum(-1), 1, atol=1e-5)
    assert set(found.dims[:-2]) == set(PLACES[kinds(part)[0][0]].inner)


@pytest.mark.parametrize("method", METHODS)
def test_the_path_is_its_parts_one_after_the_other(bell: Trace, weighted: dict, method: str) -> None:
    parts = {part: in_numpy(weighted[method], part, method) for part in PARTS}
    place = bell.row.begin - 1 + WORD
    tokens = parts["language_model"][0][0][place]
    if method == "relevance":
        tokens = tokens - np.eye(len(tokens))[place]
    found = path(bell, WORD, method)
    near(found.tokens.values, tokens)
    on_tokens = (tokens[bell.tokens.find("video")] @ parts["video_qformer"][1][0]).reshape(8, 8)
    near(found.frame_tokens.values, on_tokens)
    looked, patches = parts["image_qformer"][1], parts["vision_model"][0]
    on_patches = np.stack([on_tokens[f] @ looked[f] @ patches[f] for f in range(8)])[:, 1:]
    near(found.video.values, on_patches.reshape(8, 8, 8))
    on_segments = tokens[bell.tokens.find("audio")] @ parts["audio_qformer"][1][0]
    near(found.segments.values, on_segments)
    of_class = parts["imagebind"][0][:, 0, 1:]
    near(found.audio.values, (on_segments[:, None] * of_class).reshape(8, 8, 12))


# ------------------------------------------------------------------ what a path is


@pytest.mark.parametrize("method", METHODS)
def test_heat_has_its_places_and_stays_within_its_share(bell: Trace, method: str) -> None:
    found = path(bell, "bell", method)
    assert isinstance(found, xr.Dataset)
    assert (found.attrs["word"], found.attrs["method"]) == (" bell", method)
    sizes = {"tokens": (96,), "frame_tokens": (8, 8), "video": (8, 8, 8), "segments": (8,), "audio": (8, 8, 12)}
    assert {name: array.shape for name, array in found.items()} == sizes
    assert all((array.values >= 0).all() and array.values.any() for array in found.values())
    assert not found.tokens.values[bell.row.begin + WORD :].any()  # what was not yet said
    assert found.seconds.values.tolist() == bell["frames"].seconds.values.tolist()
    assert found.start.values.tolist() == bell["segment_tokens"].start.values.tolist()
    assert (np.diff(found.hz_low.values) > 0).all()
    assert (found.hz_low.values < found.hz_high.values).all()
    if method == "rollout":
        assert found.tokens.values.sum() == pytest.approx(1, abs=1e-5)
        for branch, first, last in (("video", "frame_tokens", "video"), ("audio", "segments", "audio")):
            share = found.tokens.values[bell.tokens.find(branch)].sum()
            assert 0 < found[last].values.sum() < found[first].values.sum() < share


@pytest.mark.parametrize("method", METHODS)
def test_more_than_the_limit_is_refused_before_anything_runs(bell: Trace, method: str) -> None:
    with pytest.raises(VltError, match=f"{method} keeps .* limit"):
        path(bell, WORD, method, limit=10)
    one = 2 * 4 * bell.tokens.size**2  # rollout: the matrix, and its product with the next
    rollout(bell, "language_model", limit=one)
    with pytest.raises(VltError, match="rollout keeps"):
        rollout(bell, "language_model", limit=one - 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("branch", ["video", "audio"])
def test_there_is_no_heat_where_nothing_is_looked_at(bell: Trace, branch: str, method: str) -> None:
    again = bell.edited(edits.knockout(branch), answer=bell.answer.text)
    found = path(again, WORD, method)
    dark, light = ("frame_tokens", "video"), ("segments", "audio")
    if branch == "audio":
        dark, light = light, dark
    assert not any(found[name].values.any() for name in dark)
    assert not found.tokens.values[bell.tokens.find(branch)].any()
    assert all(found[name].values.any() for name in light)


ELSEWHERE = {
    "another order": edits.reverse("image_queries", "frame"),
    "another order of segments": edits.reverse("audio_features", "segment"),
    "zero": edits.zero("audio_prefix"),
    "zero by scaling": edits.scale("audio_prefix", 0.0),
    "of another clip": edits.swap("audio_prefix", shipped("buzz")),
    "a function": edits.custom("frame_tokens", lambda value: value.flip(0)),
    "a head": edits.zero("video_qformer.1.cross", head=2),
    "a layer": edits.zero("language_model.1", token="audio"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_attention_did_not_bring_is_not_followed_back(bell: Trace, name: str, method: str) -> None:
    with pytest.raises(VltError, match="puts other numbers in the place of what attention brought there"):
        path(bell.edited(ELSEWHERE[name], answer=bell.answer.text), WORD, method)


@pytest.mark.parametrize(
    "edit",
    [
        edits.reverse(),
        edits.mute(segment=1),
        edits.zero("frame_position"),
        edits.noise("patches", 0.1),
        edits.ask("What?"),
        edits.zero("prefix", token="question"),
        edits.zero("language_model.1.mlp"),
    ],
)
def test_what_does_not_break_the_way_is_followed(bell: Trace, edit: edits.Edit) -> None:
    path(bell.edited(edit, answer=bell.answer.text), WORD, "rollout")
    rollout(bell.edited(edits.zero("audio_prefix"), answer=bell.answer.text), "video_qformer")  # not on the way


def test_one_frame_that_is_not_looked_at_is_dark(bell: Trace) -> None:
    again = bell.edited(edits.knockout("frame 3", at="video_qformer.*.cross"), answer=bell.answer.text)
    for method in METHODS:
        lit = path(again, WORD, method).video.values.any(axis=(1, 2))
        assert lit.tolist() == [True] * 3 + [False] + [True] * 4


@pytest.mark.parametrize("method", METHODS)
def test_paths_of_clips_with_one_branch(boxed: VideoLlama, method: str) -> None:
    seen = path(trace(boxed, shipped("silent"), "What moves?"), 0, method)
    assert set(seen) == {"tokens", "frame_tokens", "video"}
    heard = path(trace(boxed, shipped("sound_only"), "What do you hear?"), 0, method)
    assert set(heard) == {"tokens", "segments", "audio"}


def test_words_and_methods_that_are_not_there_are_refused(bell: Trace) -> None:
    assert path(bell, "bell", "rollout").identical(path(bell, WORD, "rollout"))
    for ask, message in (
        (lambda: path(bell, "buzz"), "the answer has no word 'buzz'.*hear.*bell"),
        (lambda: path(bell, 6), "no word 6"),
        (lambda: path(bell, -1), "no word -1"),
        (lambda: path(bell, 0, "rolout"), "no method 'rolout'; nearest: rollout"),
        (lambda: path(bell, 0, "relevance", limit=1000), "relevance keeps .* MiB .* the limit is"),
        (lambda: rollout(bell, "visions_model"), "no part 'visions_model'; nearest: vision_model"),
    ):
        with pytest.raises(VltError, match=message):
            ask()


def test_the_budget_of_relevance_is_what_it_keeps(bell: Trace) -> None:
    size = sum(2 * array.size * 4 for array in bell.attention("vision_model.*.self").values())
    relevance(bell, "vision_model", limit=size)
    with pytest.raises(VltError, match="relevance keeps"):
        relevance(bell, "vision_model", limit=size - 1)


def test_paths_leave_the_run_as_it_was(bell: Trace) -> None:
    before = {name: bell.stage(name).clone() for name in ("frames", "spectrograms", "logits")}
    for method in METHODS:
        path(bell, 0, method)
    assert all(torch.equal(bell.stage(name), value) for name, value in before.items())
    assert not any(value.requires_grad for value in (*bell.given.values(), *bell.values.values()))
