"""The scorer gives the model's own log-probabilities, whatever stage it starts from, and keeps edits in force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vlt
from tests.explain.conftest import CLIPS
from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.explain.scorer import PLACES, scorer
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe import edits, engine
from vlt.probe.trace import Trace, trace

AT = [at for at in PLACES if at != "parts"]


@pytest.mark.parametrize("at", PLACES)
def test_own_values_score_as_the_run(at: str, bell: Trace) -> None:
    own = bell.logprobs.values
    for target, expected in (("answer", own.sum()), ("bell", own[3]), (3, own[3])):
        score = scorer(bell, at, target)
        with torch.no_grad():
            assert float(score(score.value)[0]) == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        rather = float((score := scorer(bell, at, ("bell", "buzz")))(score.value)[0])
    other = bell.score("I hear a buzz.")
    assert rather > 0 and np.isfinite(other)


def test_the_mean_is_over_all_places(square: Trace) -> None:
    score = scorer(square, "patches")
    expected = score.value.mean((1, 2), keepdim=True).expand_as(score.value)
    torch.testing.assert_close(score.without("mean")[0], expected)


def test_a_model_in_training_is_refused(bell: Trace) -> None:
    try:
        bell.model.train()
        with pytest.raises(VltError, match=r"call model\.eval\(\)"):
            vlt.attribute(bell, "segment_tokens", "saliency", progress=False)
        with pytest.raises(VltError, match=r"call model\.eval\(\)"):  # one that was opened before
            bell.rerun(edits.zero("frame_position"), answer="I hear a bell.").logprobs  # noqa: B018
    finally:
        bell.model.eval()


def test_rather_is_the_difference_of_two_words(bell: Trace) -> None:
    score = scorer(bell, "segment_tokens", ("bell", "buzz"))
    said = trace(bell.model, bell.clip, bell.question, answer="I hear a buzz.")
    with torch.no_grad():
        assert float(score(score.value)[0]) == pytest.approx(bell.logprobs.values[3] - said.logprobs.values[3], abs=1e-4)


@pytest.mark.parametrize("at", ["frames", "patches", "spectrograms", "audio_features", "prefix", "parts"])
def test_batches_score_as_one_by_one(at: str, square: Trace) -> None:
    score = scorer(square, at, "answer", batch=3)
    draw = torch.Generator().manual_seed(1)
    x = score.value + 0.1 * torch.randn(5, *score.value.shape[1:], generator=draw)
    with torch.no_grad():
        together = score(x)
        alone = torch.cat([score(each[None]) for each in x])
    assert score.forwards == 10
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
    assert together.std() > 0


@pytest.mark.parametrize("at", ["frames", "spectrograms"])
def test_what_has_not_changed_is_not_encoded_again(at: str, square: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    score = scorer(square, at, "answer")
    without, _ = score.without()
    x = score.value.repeat(3, *[1] * (score.value.ndim - 1))
    x[0, 2], x[1, 5], x[1, 0] = without[0, 2], without[0, 5], without[0, 0]
    part = square.model.vision_model if at == "frames" else square.model.imagebind.trunk("audio")
    seen: list[int] = []
    handle = part.register_forward_hook(
        lambda module, args, out: seen.append(len(out if isinstance(out, torch.Tensor) else out.last_hidden_state))
    )
    with torch.no_grad():
        fast = score(x)
        handle.remove()
        assert 0 < sum(seen) <= 3  # and not 24
        monkeypatch.setattr(engine, "APART", ())
        torch.testing.assert_close(fast, score(x), atol=1e-5, rtol=0)
    assert fast.unique().numel() == 3 or at == "spectrograms"


@pytest.mark.parametrize(
    ("edit", "at"),
    [
        (edits.zero("patches", frame=0), "frames"),
        (edits.scale("patches", 0.5, frame=0), "frames"),  # which done twice is not done once
        (edits.zero("vision_model.1", frame=3), "frames"),
        (edits.zero("frame_tokens", frame=3), "frames"),
        (edits.zero("audio_features", segment=1), "spectrograms"),
        (edits.blank(frame=2), "frames"),
    ],
)
def test_edits_stay_in_force(edit: edits.Edit, at: str, square: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = square.rerun(edit)
    score = scorer(run, at, "answer")
    x = score.value.repeat(2, *[1] * (score.value.ndim - 1))
    x[1, 1] = score.without()[0][0, 1]
    with torch.no_grad():
        some = score(x)
        monkeypatch.setattr(engine, "APART", ())
        torch.testing.assert_close(some, score(x), atol=1e-5, rtol=0)  # each frame, or segment, anew
        own, changed = score(torch.cat([score.value, score.without()[0]]))
    assert float(own) == pytest.approx(float(run.logprobs.sum()), abs=1e-4)
    assert float(changed) != pytest.approx(float(own), abs=1e-3 if at == "frames" else 1e-5)


def test_parts_are_frames_segments_and_words(square: Trace) -> None:
    score = scorer(square, "parts", "answer")
    (axis,) = score.axes
    kinds = axis.coordinates["kind"].tolist()
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"frame": 8, "segment": 8, "word": 6}
    assert [w for w in axis.coordinates["word"].tolist() if w.strip()] == [
        str(w) for w in square.tokens.coordinates["word"][square.tokens.find("question")]
    ]
    where = {kind: kinds.index(kind) for kind in ("frame", "segment")}
    x = score.value.repeat(5, 1)
    x[0, where["frame"] + 3] = 0
    x[1, where["segment"] + 1] = 0
    x[2, where["frame"] : where["frame"] + 8] = 0
    x[3, where["frame"] : where["frame"] + 8] = 0.5
    with torch.no_grad():
        found = score(x).tolist()
    same = {"answer": square.answer.text}
    assert found[0] == pytest.approx(float(square.rerun(edits.blank(frame=3), **same).logprobs.sum()), abs=1e-3)
    assert found[1] == pytest.approx(float(square.rerun(edits.mute(segment=1), **same).logprobs.sum()), abs=1e-3)
    assert found[2] == pytest.approx(float(square.rerun(edits.blank(), **same).logprobs.sum()), abs=1e-3)
    assert found[3] not in (found[2], found[4])


def test_parts_without_a_branch(boxed: VideoLlama) -> None:
    seen = trace(boxed, vlt.Clip(CLIPS / "silent.mp4"), "What moves?", branches=["video"])
    heard = trace(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), "What do you hear?", branches=["audio"])
    assert set(scorer(seen, "parts").axes[0].coordinates["kind"]) == {"frame", "word"}
    assert set(scorer(heard, "parts").axes[0].coordinates["kind"]) == {"segment", "word"}
    with pytest.raises(VltError, match="this run has no audio"):
        scorer(seen, "spectrograms")


@pytest.mark.parametrize("at", AT)
def test_blank_is_what_edits_make(at: str, bell: Trace) -> None:
    without, name = scorer(bell, at).without()
    assert name == "blank" and without.shape == scorer(bell, at).value.shape
    both = bell.rerun([edits.blank(), edits.mute()], answer=bell.answer.text)
    expected = both.stage(at).clone()
    if at == "prefix":
        text = torch.as_tensor(bell.tokens.find("text"))
        expected[:, text] = bell.model.get_input_embeddings().weight.float().mean(0)
        expected = expected[:, : bell.row.begin]
    torch.testing.assert_close(without, expected, atol=1e-5, rtol=1e-4)


TAKEN = {
    "the whole stage": lambda hum: (edits.swap("audio_features", hum), edits.swap_sound(hum)),
    "of several": lambda hum: (edits.resample("audio_features", [hum, hum]), edits.swap_sound(hum)),
    "a mean": lambda hum: (edits.mean("segment_tokens", [hum]), edits.swap_sound(hum)),
    "some segments": lambda hum: (
        [edits.mute(), edits.swap("audio_features", hum, segment=[3, 4])],
        [edits.mute(), edits.swap("spectrograms", hum, segment=[3, 4])],
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_comes_from_another_run_is_content(name: str, bell: Trace) -> None:
    """The same numbers at a stage, put in there or before it, have the same heat; silence does not hold them."""
    there, before = (bell.rerun(edit) for edit in TAKEN[name](Clip(CLIPS / "hum.mp4")))
    assert (there.stage("segment_tokens") - before.stage("segment_tokens")).abs().max() <= 1e-5
    for at in ("segment_tokens", "prefix", "parts"):
        heats = [attribute(run, at, "ablation", "hum", progress=False) for run in (there, before)]
        np.testing.assert_allclose(heats[0].heat, heats[1].heat, atol=1e-4)
        assert heats[0].score - heats[0].score_without > 1
    silent = scorer(there, "segment_tokens").without()[0]
    assert (silent - bell.rerun(edits.mute()).stage("segment_tokens")).abs().max() <= 1e-5


def test_noise_on_what_was_put_in_is_content_too(square: Trace) -> None:
    other = trace(square.model, Clip(CLIPS / "hum.mp4"), square.question)
    run = square.rerun([edits.blank(), edits.swap("frames", other), edits.noise("frames", size=0.1)])
    empty = scorer(run, "frame_tokens").without()[0]
    assert (empty - square.rerun(edits.blank()).stage("frame_tokens")).abs().max() <= 1e-5


@pytest.mark.parametrize("edit", [edits.zero("audio_prefix"), edits.without("audio")])
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "smoothgrad", "gradient_shap", "grad_cam"])
def test_a_gradient_of_what_is_cut_is_zero(method: str, edit: edits.Edit, bell: Trace) -> None:
    run = bell.rerun(edit)
    heat = attribute(run, "audio_features", method, progress=False)
    assert not heat.heat.values.any() and "little to explain" in heat.warnings[0]


@pytest.mark.parametrize("baseline", ["blank", "zero", "mean"])
def test_at_the_prefix_the_answer_stays_as_it_was_said(baseline: str, bell: Trace) -> None:
    """What is taken away is the prompt; the words before the one that is scored are given, by hand as by the scorer."""
    score = scorer(bell, "prefix", "bell")
    begin, bells = bell.row.begin, bell.word("bell")
    assert score.value.shape[1] == begin == score.axes[0].size and torch.equal(score.value, bell.stage("prefix")[:, :begin])
    with torch.no_grad():
        without, _ = score.without(baseline)
        whole = torch.cat([without, bell.stage("prefix")[:, begin:]], dim=1)
        logits = bell.model.run({"prefix": whole}, ["logits"])["logits"]
        said = logits[0, begin - 1 + bells].log_softmax(-1)[bell.answer.ids[bells]]
        assert float(score(without)) == pytest.approx(float(said), abs=1e-4)


def test_other_baselines(bell: Trace) -> None:
    score = scorer(bell, "frame_tokens")
    mean, _ = score.without("mean")
    torch.testing.assert_close(mean[0, 5], score.value[0].mean(0))
    zero, _ = score.without("zero")
    assert not zero.any()
    given, name = score.without(torch.ones(score.value.shape[1:]))
    assert name == "given" and bool((given == 1).all())
