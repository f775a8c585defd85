"""A run that can be read: its numbers are the model's, its answers too, for every kind of clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import vlt
from tests.conftest import byte_tokenizer
from tests.probe.conftest import ATTENTIONS, PLACES, QUESTION, everything_eager, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.model import stages
from vlt.model.video_llama import VideoLlama
from vlt.probe.labels import Heard
from vlt.probe.sites import fits
from vlt.probe.trace import Trace, trace


@pytest.fixture(scope="module")
def model_says(bell: Trace) -> dict:
    """`model.run`, without the probe: of the clip, and with the answer behind the prompt."""
    model = bell.model
    out = model.run({"clip": bell.clip, "question": QUESTION}, [n for n in stages.TENSOR_STAGES if n != "logits"])
    soft = {f"{branch}_prefix": out[f"{branch}_prefix"] for branch in ("video", "audio")}
    prompt = model.prompt(bell.clip, QUESTION).followed_by(bell.answer.ids)
    return out | model.run({**soft, "prompt": prompt}, ["prefix", "prefix_mask", "logits"])


@pytest.mark.parametrize("name", stages.TENSOR_STAGES)
def test_stages_are_the_models(bell: Trace, model_says: dict, name: str) -> None:
    assert torch.equal(bell.stage(name), model_says[name])
    array = bell[name]
    assert np.array_equal(array.values, model_says[name][0].numpy())
    assert array.dims == tuple(axis.name for axis in bell.axes_of(name))
    assert array.name == name


def test_what_is_read_is_a_copy(bell: Trace) -> None:
    before = bell.stage("video_queries").clone()
    bell["video_queries"].values[:] = 0
    assert torch.equal(bell.stage("video_queries"), before)


@pytest.mark.parametrize("name", [n for n, site in PLACES.items() if not site.columns])
def test_places_give_what_their_modules_give(bell: Trace, name: str) -> None:
    seen = []
    handle = bell.sites[name].module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        bell.model.run({**bell.given, "prompt": [bell.prompt.followed_by(bell.answer.ids)]}, ["logits"])
    finally:
        handle.remove()
    (output,) = seen
    output = output[0] if isinstance(output, tuple) else output
    array = bell[name]
    assert np.array_equal(array.values.ravel(), output.numpy().ravel())
    assert array.dims == PLACES[name].axes


@pytest.fixture(scope="module")
def said(bell: Trace) -> dict[str, torch.Tensor]:
    recorder, names = everything_eager(bell)
    return {name: recorder.said[names[name]] for name in ATTENTIONS}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attentions_give_what_their_heads_say(bell: Trace, said: dict, name: str) -> None:
    array = bell[name]
    assert array.dims == PLACES[name].axes
    np.testing.assert_allclose(array.values.ravel(), said[name].numpy().ravel(), atol=1e-5)


def test_places_of_a_block_add_up(bell: Trace) -> None:
    """Behind a block are what was before it, what its attention gives, and what its MLP adds."""
    model, found = bell.model, {name: torch.tensor(bell[name].values) for name in PLACES}
    eyes, ears = model.vision_model.encoder.layers, model.imagebind.trunk("audio").blocks
    words = model.language_model.get_decoder().layers
    for part, outs in (
        ("vision_model", [layer.self_attn.projection for layer in eyes]),
        ("imagebind", [block.attention.out for block in ears]),
        ("language_model", [layer.self_attn.o_proj for layer in words]),
    ):
        for i in range(1, len(outs)):
            attended = outs[i](found[f"{part}.{i}.self"].flatten(-2))
            whole = found[f"{part}.{i - 1}"] + attended + found[f"{part}.{i}.mlp"]
            torch.testing.assert_close(found[f"{part}.{i}"], whole, atol=1e-4, rtol=1e-4)
    for part in ("image_qformer", "video_qformer", "audio_qformer"):
        former = getattr(model, part)
        before = former.layernorm(getattr(model, part.replace("qformer", "query_tokens")))
        before = before if part == "image_qformer" else before[0]
        for i, layer in enumerate(former.encoder.layer):
            value = layer.attention.output.dense(found[f"{part}.{i}.self"].flatten(-2))
            value = layer.attention.output.LayerNorm(value + before)
            if f"{part}.{i}.cross" in found:
                crossed = layer.crossattention.output.dense(found[f"{part}.{i}.cross"].flatten(-2))
                value = layer.crossattention.output.LayerNorm(crossed + value)
            value = layer.output_query.LayerNorm(found[f"{part}.{i}.mlp"] + value)
            torch.testing.assert_close(found[f"{part}.{i}"], value, atol=1e-4, rtol=1e-4)
            before = found[f"{part}.{i}"]


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("name", ["two_bell", "silent_two", "sound_only"])
def test_answers_are_the_models(boxed: VideoLlama, name: str) -> None:
    clip = shipped(name)
    encoded = boxed.encode(clip)
    for question in ("What do you hear?", "What moves?"):
        run, answer = trace(boxed, clip, question), boxed.answer(encoded, question)
        assert (run.answer.text, run.answer.ids, run.answer.ended) == (answer.text, answer.ids, answer.ended)
        assert run.answer.prompt == answer.prompt


OPTIONS = {
    "branches": {"branches": ["audio"]},
    "frames": {"n_frames": 3},
    "coverage": {"coverage": "original"},
    "system": {"system": "You are kind."},
    "history": {"history": [("What moves?", "A square moves left."), ("What else?", "Nothing.")]},
    "limit": {"max_new_tokens": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_answers(bell: Trace, silent: Trace, name: str) -> None:
    plain, options = (bell if name in ("branches", "coverage") else silent), OPTIONS[name]
    run = trace(plain.model, plain.clip, plain.question, **options)
    answer = plain.model.answer(plain.clip, plain.question, **options)
    assert run.answer.ids == answer.ids
    assert run.answer.prompt == answer.prompt
    assert _what_hangs_on_options(run) != _what_hangs_on_options(plain)


def _what_hangs_on_options(run: Trace) -> tuple:
    return run.prompt, run.answer.ids, {name: (value.shape, float(value.sum())) for name, value in run.given.items()}


def test_log_probabilities_are_the_logits(bell: Trace, model_says: dict) -> None:
    begin = bell.model.length(bell.prompt)
    log = torch.log_softmax(model_says["logits"][0], dim=-1)
    expected = [float(log[begin - 1 + i, token]) for i, token in enumerate(bell.answer.ids)]
    np.testing.assert_allclose(bell.logprobs.values, expected, atol=1e-6)
    assert list(bell.logprobs.token.values) == list(range(begin, begin + len(expected)))
    assert list(bell.logprobs.word.values) == list(bell.answer.tokens)


def test_scores_are_sums_of_log_probabilities(bell: Trace) -> None:
    assert bell.score(bell.answer.text) == pytest.approx(float(bell.logprobs.sum()), abs=1e-5)
    scores = bell.score(["I hear a buzz.", "I hear nothing."])
    for text, score in scores.items():
        other = trace(bell.model, bell.clip, QUESTION, answer=text)
        assert score == pytest.approx(float(other.logprobs.sum()), abs=1e-4)
        assert score < float(bell.logprobs.sum())


def test_a_given_answer_is_read_as_if_it_had_been_said(bell: Trace) -> None:
    run = trace(bell.model, bell.clip, QUESTION, answer="I hear a buzz.")
    ids = bell.model.tokenizer.encode(" I hear a buzz.###", add_special_tokens=False)
    assert run.answer.text == "I hear a buzz."
    assert list(run.answer.ids) == ids
    assert run.tokens.size == bell.model.length(run.prompt) + len(ids)
    assert run.logprobs.values[3] < np.log(0.5) < bell.logprobs.values[3]  # "buzz", and "bell"
    with pytest.raises(VltError, match="cannot be put behind this prompt"):
        _ = trace(bell.model, bell.clip, QUESTION, answer=" ").answer


# ------------------------------------------------------------------ one pass is as step by step


@pytest.fixture(scope="module", params=["bell", "grouped_run"])
def stepwise(request: pytest.FixtureRequest) -> tuple[Trace, list, list]:
    """transformers' own decoding with its cache and eager attention: of every step after the prompt, the attention of
    its one row, and the residual streams."""
    run: Trace = request.getfixturevalue(request.param)
    language = run.model.language_model
    attentions, streams = [], []
    language.config._attn_implementation = "eager"
    try:
        out = language(
            inputs_embeds=run.stage("prefix")[:, : run.row.begin],
            use_cache=True,
            output_attentions=True,
            output_hidden_states=True,
        )
        for token in run.answer.ids[:-1]:
            attentions.append([a[0, :, -1] for a in out.attentions])
            streams.append([s[0, -1] for s in out.hidden_states])
            out = language(
                input_ids=torch.tensor([[token]]),
                cache=out.past_key_values,
                use_cache=True,
                output_attentions=True,
                output_hidden_states=True,
            )
        attentions.append([a[0, :, -1] for a in out.attentions])
        streams.append([s[0, -1] for s in out.hidden_states])
    finally:
        language.config._attn_implementation = "sdpa"
    return run, attentions, streams


def test_attention_of_answer_tokens_is_that_of_decoding(stepwise: tuple[Trace, list, list]) -> None:
    run, attentions, _ = stepwise
    found = run.attention("language_model.*.self", rows="answering")
    for layer, array in enumerate(found.values()):
        assert array.shape[1] == len(run.answer.ids)
        for step, expected in enumerate(attentions):
            row = array.values[:, step]
            np.testing.assert_allclose(row[:, : expected[layer].shape[1]], expected[layer].numpy(), atol=1e-5)
            assert not row[:, expected[layer].shape[1] :].any()


def test_residual_streams_of_answer_tokens_are_those_of_decoding(stepwise: tuple[Trace, list, list]) -> None:
    run, _, streams = stepwise
    at = run.tokens.find("answering")
    norm = run.model.language_model.get_decoder().norm
    for layer, array in enumerate(run["language_model.*"].values()):
        value = torch.from_numpy(array.values[at])
        value = norm(value) if layer == 3 else value  # transformers gives the last one normed
        for step, expected in enumerate(streams):
            np.testing.assert_allclose(value[step].numpy(), expected[layer + 1].numpy(), atol=1e-5)


# ------------------------------------------------------------------ names


def test_white_space_around_an_answer_is_none_of_it(bell: Trace) -> None:
    assert bell.score(" I hear a bell.\n") == bell.score("I hear a bell.")


def test_patterns_find_all_that_they_fit(bell: Trace) -> None:
    def of(kinds: tuple[str, ...], *pieces: str) -> list[str]:
        return [n for n, s in PLACES.items() if s.kind in kinds and all(p in n for p in pieces)]

    assert list(bell.attention("**")) == of(("self", "cross"))
    assert list(bell.attention("*qformer.*.cross")) == of(("cross",))
    assert list(bell["language_model.*"]) == of(("block",), "language_model")
    assert list(bell["language_model.[1-2]"]) == ["language_model.1", "language_model.2"]
    assert list(bell["vision_model.[02].mlp"]) == ["vision_model.0.mlp", "vision_model.2.mlp"]
    assert list(bell["*_position"]) == of(("table",))
    assert list(bell["video_qformer.**"]) == of(("block", "mlp", "self", "cross"), "video_qformer.")
    assert list(bell["**.self"]) == of(("self",))
    assert list(bell["*_prefix"]) == ["video_prefix", "audio_prefix"]
    assert list(bell["video_*"]) == ["video_queries", "video_prefix"]
    one = bell.attention("video_qformer.1.cross")
    assert np.array_equal(one.values, bell.attention("video_qformer.[1].cross")["video_qformer.1.cross"].values)


def test_layers_of_two_digits_are_numbers_in_patterns() -> None:
    names = [f"language_model.{i}.mlp" for i in range(16)]
    assert [n for n in names if fits("language_model.[8-14].mlp", n)] == names[8:15]
    assert [n for n in names if fits("**.[10-14].*", n)] == names[10:15]
    assert [n for n in names if fits("language_model.[12].*", n)] == names[1:3]  # characters, as ever
    assert not [n for n in names if fits("language_model.[9-3].mlp", n)]


def test_only_what_is_asked_for_is_read(bell: Trace) -> None:
    whole = bell["language_model.2"]
    audio = bell.read("language_model.2", token="audio", width="3:7")
    xr.testing.assert_identical(audio, whole[bell.tokens.find("audio"), 3:7])
    said = bell.read("language_model.*.self", token="answering", head=1)
    assert {array.shape for array in said.values()} == {(6, 1, 32)}
    np.testing.assert_array_equal(said["language_model.1.self"][:, 0], bell["language_model.1.self"][89:95, 1])
    frame = bell.read("frame_tokens", frame=3)
    np.testing.assert_array_equal(frame, bell["frame_tokens"][24:32])
    assert set(frame.frame.values) == {3}
    with pytest.raises(VltError, match="ask at the stage 'frame_tokens'"):
        bell.read("language_model.2", frame=3)
    for name in ("image_queries", "vision_model.0"):
        assert bell.read(name, frame=2).shape[0] == 1


def test_only_what_is_asked_for_is_kept_while_it_runs(bell: Trace) -> None:
    site = bell.sites["language_model.1"]
    kept = Heard(site, bell.axes_of(site.name), {"token": "last"})
    bell.observe({site.name: kept.hear})
    assert kept.value.shape == (1, 128) and kept.value.untyped_storage().nbytes() == 4 * 128


def test_all_that_a_pattern_fits_comes_from_one_pass(bell: Trace) -> None:
    passes: list[object] = []
    handle = bell.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        found = bell["language_model.**"]
    finally:
        handle.remove()
    assert len(found) == 12 and len(passes) == 1
    np.testing.assert_array_equal(found["language_model.2.mlp"].values, bell["language_model.2.mlp"].values)
    np.testing.assert_array_equal(found["language_model.1.self"].values, bell["language_model.1.self"].values)


UNKNOWN = {
    "a place": (lambda run: run["video_qformer.7"], "'video_qformer.7' fits no place in this model; nearest: video_qformer"),
    "a stage": (lambda run: run["video_querys"], "nearest: video_queries"),
    "a pattern": (lambda run: run["lanuage_model.*"], "nearest: language_model"),
    "an attention": (lambda run: run.attention("video_qformer.1.crss"), r"nearest: video_qformer\.1\.cross"),
    "no attention": (lambda run: run.attention("language_model.2"), "which is not one of self, cross; nearest: language_model"),
    "no array": (lambda run: run["prompt"], "'prompt' is no array"),
    "a row": (lambda run: run.attention("language_model.0.self", rows=999), "token 999 was asked for; there are 96"),
    "a head": (lambda run: run.attention("language_model.0.self", head=4), "head 4 was asked for; there are 4: 0 to 3"),
    "half a row": (lambda run: run.attention("language_model.0.self", rows=1.5), "1.5"),
    "a phrase": (lambda run: run.attention("language_model.0.self", columns=["audio", "smell"]), "no 'smell'"),
    "a frame": (lambda run: run.attention("language_model.0.self", columns="frame 3"), "ask at the stage 'frame_tokens'"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_are_refused_with_the_nearest(bell: Trace, name: str) -> None:
    ask, message = UNKNOWN[name]
    with pytest.raises(VltError, match=message):
        ask(bell)


# ------------------------------------------------------------------ every kind of clip


@pytest.fixture(scope="module")
def runs(boxed: VideoLlama, media, tmp_path_factory) -> dict[str, Trace]:
    picture = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    clips = {
        "silent": shipped("silent"),
        "sound": shipped("sound_only"),
        "still": Clip(picture),
        "one frame": Clip(media("one.mp4", frames=1, sound=None)),
        "short": Clip(media("short.mp4", frames=3)),
    }
    made = {name: trace(boxed, clip, "What is there?", max_new_tokens=8) for name, clip in clips.items()}
    return made | {"seen only": trace(boxed, shipped("two_bell"), "What is there?", branches=["video"], max_new_tokens=8)}


KINDS = {
    "silent": ("video", 8),
    "sound": ("audio", 0),
    "still": ("video", 1),
    "one frame": ("video", 1),
    "short": ("both", 3),
    "seen only": ("video", 8),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_clip_can_be_read(runs: dict[str, Trace], name: str) -> None:
    run, (branch, frames) = runs[name], KINDS[name]
    answer = run.model.answer(run.clip, run.question, branches=run.setting.branches, max_new_tokens=8)
    assert run.answer.ids == answer.ids
    here = [n for n in stages.TENSOR_STAGES if branch == "both" or stages.branch(n) in (None, branch)]
    assert list(run.stages().index) == here
    for stage in here:
        array = run[stage]
        assert array.shape == tuple(run.stage(stage).shape[1:])
        assert np.isfinite(array.values).all()
        assert array.sizes.get("frame", frames) == frames
    for place in [n for n, site in PLACES.items() if site.stage in here and site.kind in ("block", "table")]:
        array = run[place]
        assert array.shape == tuple(axis.size for axis in run.axes_of(place))
    for stage in set(stages.TENSOR_STAGES) - set(here):
        with pytest.raises(VltError, match=f"this run has no {stages.branch(stage)}; it has {branch}"):
            run.stage(stage)


def test_branches_that_are_not_there_are_refused(runs: dict[str, Trace]) -> None:
    with pytest.raises(VltError, match="this run has no audio"):
        runs["silent"].attention("audio_qformer.0.cross")
    with pytest.raises(VltError, match="this run has no video"):
        runs["sound"].rerun(edits.zero("frame_tokens"))
    with pytest.raises(VltError, match="there is no audio here"):
        runs["silent"].tokens.find("audio")
    with pytest.raises(VltError, match="has no usable audio"):
        trace(runs["silent"].model, runs["silent"].clip, QUESTION, branches=["audio"])
    with pytest.raises(VltError, match=r"open it first: vlt\.Clip"):
        trace(runs["silent"].model, Path("a.mp4"), QUESTION)
    with pytest.raises(VltError, match="question is a text"):
        _ = trace(runs["silent"].model, runs["silent"].clip, " ").prompt


def test_without_a_tokenizer_of_its_own_the_model_can_still_be_read(grouped_run: Trace) -> None:
    """Another tokenizer, that of bytes: words come in pieces."""
    assert grouped_run.model.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    words = grouped_run.tokens.coordinates["word"][grouped_run.tokens.find("question")]
    assert "".join(words) == "What?"


# ------------------------------------------------------------------ run again


def test_edits_come_behind_those_in_force(bell: Trace) -> None:
    first = bell.rerun(edits.scale("video_queries", 3.0))
    second = first.rerun(edits.scale("video_queries", 0.5, video_query=1))
    value, plain = second["video_queries"].values, bell["video_queries"].values
    np.testing.assert_allclose(value[1], plain[1] * 1.5, rtol=1e-5)
    np.testing.assert_allclose(value[2], plain[2] * 3, rtol=1e-5)
    assert len(second.edits) == 2
    assert second.parent is bell


def test_arguments_of_another_kind_are_refused(bell: Trace) -> None:
    """Most often two are in the wrong order."""
    clip, model = bell.clip, bell.model
    wrong: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
        (vlt.trace, (clip, model, "What?"), r"the model of vlt.trace\(model, clip, question\): expected VideoLlama, got Clip"),
        (vlt.trace, (model, clip, 3), "the question of .* expected str, got int"),
        (vlt.sweep, (clip, {"deaf": vlt.edits.mute()}), "the run of .* expected Trace, got Clip"),
        (vlt.path, (clip,), "the run of .* expected Trace, got Clip"),
        (vlt.interaction, (clip,), "the run of .* expected Trace, got Clip"),
        (vlt.attribute, (clip,), "the run of .* expected Trace, got Clip"),
        (vlt.attribute, (bell, 3), "a stage: expected str, got int"),
        (vlt.faithfulness, (bell,), "expected Attribution, got Trace"),
        (vlt.Probe, (clip, model), "the model of .* expected VideoLlama, got Clip"),
        (vlt.load, (3,), "the name of a model: expected str or Path, got int"),
        (bell.attention, (3,), "the name of a stage or a place: expected str, got int"),
        (bell.__getitem__, (3,), "the name of a stage or a place: expected str, got int"),
        (bell.score, (3,), "an answer: expected a text, or a list of texts, got 3"),
    ]
    for function, arguments, message in wrong:
        with pytest.raises(VltError, match=message):
            function(*arguments)
    with pytest.raises(VltError, match="a candidate: expected a text"):
        vlt.sweep(bell, {"deaf": vlt.edits.mute()}, candidates=[3])  # type: ignore[list-item]
    with pytest.raises(VltError, match="frames of 0 pixels were asked for"):
        clip.frames(size=0)
    with pytest.raises(VltError, match="a seed a whole number; got"):
        model.answer(clip, "What?", sample=True, seed="x")


@pytest.mark.parametrize("count", [0, 100_000])
def test_answers_have_room(bell: Trace, count: int) -> None:
    with pytest.raises(VltError, match=f"max_new_tokens is {count}; the prompt, earlier turns included, takes 90 of the"):
        _ = trace(bell.model, bell.clip, QUESTION, max_new_tokens=count).answer


def test_how_often_edits_fired_is_told(bell: Trace) -> None:
    run = bell.edited([edits.zero("video_queries"), edits.knockout("video 0", by="last", layers=[0, 2])])
    assert set(run.fired.values()) == {0}
    run.stage("logits")
    assert run.answer.text
    zeroed, cut = run.fired.values()
    assert zeroed == 1
    assert cut >= 2  # one edge in each of two layers, in every pass over the prompt
    assert cut % 2 == 0


def test_seconds_are_told_of_what_was_computed(bell: Trace) -> None:
    again = bell.rerun(edits.zero("video_queries")).stages()["seconds"]
    assert again["frames"] == again["audio_prefix"] == again["video_queries"] == 0  # shared with the unedited run
    assert again["video_prefix"] > 0
    assert again["logits"] > 0
