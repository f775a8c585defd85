"""captum's own classes for language models, on video and on sound."""

from __future__ import annotations

import copy

import captum.attr
import numpy as np
import pytest
import torch

from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.explain.masks import SoundMaskInput, Speaker, VideoMaskInput
from vlt.model.video_llama import VideoLlama
from vlt.probe import edits
from vlt.probe.trace import Trace, trace


def by_captum(run: Trace, inputs: VideoMaskInput | SoundMaskInput, **options: object) -> captum.attr.LLMAttributionResult:
    speaker = Speaker(run)
    method = captum.attr.LLMAttribution(captum.attr.FeatureAblation(speaker), speaker.tokenizer)
    return method.attribute(inputs, **{"target": torch.tensor(run.answer.ids), **options})


@pytest.mark.parametrize("edit", [None, edits.zero("frame_position")])
@pytest.mark.parametrize("options", [{"use_cached_outputs": False}, {"forward_in_tokens": False}])
def test_sound_as_ours(options: dict, edit: edits.Edit | None, bell: Trace) -> None:
    run = bell if edit is None else bell.rerun(edit)
    inputs = SoundMaskInput(run, torch.arange(8)[:, None, None].expand(8, 128, 204))
    found = by_captum(run, inputs, **options)
    ours = attribute(run, "spectrograms", "ablation", progress=False, cells={"mel": 128, "time": 204})
    np.testing.assert_allclose(found.seq_attr, ours.heat.sum(("mel", "time")), atol=1e-3)
    assert found.token_attr.shape == (len(run.answer.ids), 8)
    np.testing.assert_allclose(found.token_attr.sum(0), found.seq_attr, atol=1e-4)
    placed = inputs.format_pixel_attr(found.seq_attr)
    assert placed.shape == (8, 128, 204) and bool((placed[1] == found.seq_attr[1]).all())


def test_a_target_can_be_a_text(bell: Trace) -> None:
    """Its tokens are those of an answer, stop sign included; and what is not there is as in the baseline that is asked for."""
    mask = torch.arange(8)[:, None, None].expand(8, 128, 204)
    by_ids, by_text = (
        by_captum(bell, SoundMaskInput(bell, mask, "zero"), use_cached_outputs=False, target=target)
        for target in (torch.tensor(bell.answer.ids), "I hear a bell.")
    )
    assert by_text.token_attr.shape == (len(bell.answer.ids), 8)
    torch.testing.assert_close(by_text.seq_attr, by_ids.seq_attr)
    ours = attribute(bell, "spectrograms", "ablation", baseline="zero", progress=False, cells={"mel": 128, "time": 204})
    np.testing.assert_allclose(by_text.seq_attr, ours.heat.sum(("mel", "time")), atol=1e-3)


def test_video_as_ours(square: Trace) -> None:
    halves = torch.zeros(8, 64, 64, dtype=torch.int64)
    halves[:, 32:] = 7  # numbers need not be without gaps
    inputs = VideoMaskInput(square, halves)
    found = by_captum(square, inputs, use_cached_outputs=False)
    ours = attribute(square, "frames", "ablation", progress=False, cells={"frame": 8, "height": 32, "width": 64})
    np.testing.assert_allclose(found.seq_attr, ours.heat.values.reshape(8, 2, 32, 64).sum((0, 2, 3)), atol=1e-3)
    assert [int(mask.sum()) for mask in inputs.get_mask_list()] == [8 * 32 * 64] * 2


def test_half_precision_is_scored_in_full(boxed: VideoLlama, bell: Trace) -> None:
    """captum takes the logarithm in the dtype of the logits; ours is of float32."""
    run = trace(copy.deepcopy(boxed).to(torch.bfloat16), bell.clip, bell.question)
    found = by_captum(run, SoundMaskInput(run, torch.arange(8)[:, None, None].expand(8, 128, 204)), use_cached_outputs=False)
    ours = attribute(run, "spectrograms", "ablation", progress=False, cells={"mel": 128, "time": 204})
    np.testing.assert_allclose(found.seq_attr, ours.heat.sum(("mel", "time")), atol=3e-3, rtol=0.02)
    assert found.seq_attr.abs().min() > 0  # scored in steps of bfloat16, all but one would be 0


def test_everything_there_is_the_run_itself(square: Trace) -> None:
    inputs = VideoMaskInput(square)
    assert inputs.to_tensor().shape == (1, 1)
    torch.testing.assert_close(inputs.to_model_input(inputs.to_tensor())["frames"], square.stage("frames"))
    ids = torch.cat([Speaker(square).ids, torch.tensor([square.answer.ids])], dim=1)
    logits = Speaker(square)(ids).logits
    torch.testing.assert_close(logits, square.stage("logits"), atol=1e-4, rtol=1e-4)


def test_refusals(bell: Trace) -> None:
    with pytest.raises(VltError, match=r"a mask at 'frames' is of whole numbers \[8, 64, 64\]; got torch.int64 \[8, 64\]"):
        VideoMaskInput(bell, torch.zeros(8, 64, dtype=torch.int64))
    with pytest.raises(VltError, match=r"got torch.float32 \[8, 128, 204\]"):
        SoundMaskInput(bell, torch.zeros(8, 128, 204))
    with pytest.raises(VltError, match="give use_cached_outputs=False"):
        by_captum(bell, SoundMaskInput(bell))
    with pytest.raises(VltError, match="a Speaker reads one row at a time"):
        Speaker(bell)(torch.zeros(1, 200, dtype=torch.int64))
    with pytest.raises(VltError, match="a mask over time has no one picture"):
        SoundMaskInput(bell).plot_mask_overlay()
