"""Methods that read attention give what the probe reads, spread over the stage's places without loss."""

from __future__ import annotations

import numpy as np
import pytest

import vlt
from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.probe.trace import Trace, trace

STAGES = {
    "frames": "video",
    "frame_tokens": "frame_tokens",
    "spectrograms": "audio",
    "segment_tokens": "segments",
    "prefix": "tokens",
}


@pytest.mark.parametrize("method", ["rollout", "relevance"])
@pytest.mark.parametrize("at", STAGES)
def test_as_the_path(method: str, at: str, bell: Trace) -> None:
    heat = attribute(bell, at, method, "bell", progress=False).heat.values
    path = vlt.path(bell, "bell", method)[STAGES[at]].values
    path = path[: bell.row.begin] if at == "prefix" else path  # the answer's own words are not asked about
    assert heat.sum() == pytest.approx(path.sum(), rel=1e-4)
    if at == "frames":
        np.testing.assert_allclose(heat.reshape(8, 8, 8, 8, 8).sum((2, 4)), path, rtol=1e-4, atol=1e-12)
    elif at != "spectrograms":
        np.testing.assert_allclose(heat, path.ravel(), rtol=1e-5)
    else:
        np.testing.assert_allclose(heat.sum((1, 2)), path.sum((1, 2)), rtol=1e-4)
        assert (heat >= 0).all() and heat[:, 0, 0].any()


@pytest.mark.parametrize("method", ["attention", "rollout", "relevance"])
def test_of_the_answer_is_the_mean_over_its_words(method: str, bell: Trace) -> None:
    told: list[tuple[int, int]] = []
    whole = attribute(bell, "prefix", method, "answer", progress=lambda done, total: told.append((done, total)))
    words = [attribute(bell, "prefix", method, i, progress=False) for i in range(6)]
    assert len(bell.answer.tokens) == 6 and told == [(i, 6) for i in range(1, 7)]
    np.testing.assert_allclose(whole.heat.values, np.mean([word.heat.values for word in words], axis=0), rtol=1e-4)
    assert not np.allclose(words[0].heat, words[3].heat)
    assert (whole.forwards, whole.backwards) == (6, 6 * (method == "relevance"))


def test_raw_attention(bell: Trace) -> None:
    def read(at: str) -> np.ndarray:
        return attribute(bell, at, "attention", "bell", progress=False).heat.values

    row = bell.row.begin - 1 + 3
    told = bell.attention("language_model.3.self", rows=row, mean=True).values.reshape(-1)
    np.testing.assert_allclose(read("prefix"), told[: bell.row.begin])
    cross = bell.attention("video_qformer.1.cross", mean=True).values
    np.testing.assert_allclose(read("frame_tokens"), cross.mean(0), rtol=1e-5)
    patches = bell.attention("image_qformer.0.cross", mean=True).values.mean(1)[:, 1:]
    np.testing.assert_allclose(read("frames").reshape(8, 8, 8, 8, 8).sum((2, 4)).reshape(8, 64), patches, rtol=1e-4)
    segments = bell.attention("audio_qformer.1.cross", mean=True).values.mean(0)
    np.testing.assert_allclose(read("segment_tokens"), segments, rtol=1e-5)
    mel = bell.attention("imagebind.1.self", rows=0, mean=True).values
    assert read("spectrograms").sum() == pytest.approx(mel[:, 0, 1:-1].sum(), rel=0.05)


def test_raw_attention_to_a_stage_knows_no_question(bell: Trace) -> None:
    """Away from the prefix it is read once, is the same whatever was asked and said, and the picture tells so."""
    other = trace(bell.model, bell.clip, "What colour is the circle?")
    told = "Raw attention to this stage knows neither question nor word: the map is the same for all."
    for at in ("frames", "segment_tokens"):
        maps = [
            attribute(run, at, "attention", word, progress=False)
            for run, word in ((bell, "bell"), (bell, 0), (other, "answer"))
        ]
        assert all(np.array_equal(maps[0].heat, each.heat) for each in maps) and {each.forwards for each in maps} == {1}
        assert all(told in each.warnings for each in maps) and told in maps[0].figure().alt
        assert told not in attribute(bell, at, "rollout", "bell", progress=False).warnings
    prefix = [attribute(bell, "prefix", "attention", word, progress=False) for word in ("bell", 0)]
    assert not np.allclose(prefix[0].heat, prefix[1].heat) and told not in prefix[0].warnings
    with pytest.raises(VltError, match="the answer has no word 'buzz'"):
        attribute(bell, "frames", "attention", "buzz", progress=False)


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_parts_sum_what_lies_in_them(method: str, bell: Trace) -> None:
    found = attribute(bell, "parts", method, "bell", progress=False).heat
    tokens = attribute(bell, "prefix", method, "bell", progress=False).heat.values
    frames = attribute(bell, "frame_tokens", method, "bell", progress=False).heat.values.reshape(8, -1).sum(1)
    segments = attribute(bell, "segment_tokens", method, "bell", progress=False).heat.values
    kinds = found.kind.values
    np.testing.assert_allclose(found.values[kinds == "frame"], frames, rtol=1e-5)
    np.testing.assert_allclose(found.values[kinds == "segment"], segments, rtol=1e-5)
    np.testing.assert_allclose(found.values[kinds == "word"], tokens[bell.tokens.find("question")], rtol=1e-5)
