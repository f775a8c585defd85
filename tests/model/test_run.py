"""The graph: only what lies between is computed, and what is given is right or refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Prompt
from vlt.model import stages
from vlt.model.video_llama import VideoLlama

CHAIN = {
    "video": ["frames", "patches", "image_queries", "frame_tokens", "video_queries", "video_prefix"],
    "audio": ["spectrograms", "audio_features", "segment_tokens", "audio_queries", "audio_prefix"],
}
PROMPT = Prompt(((1, 5, 6), "audio", (7,), "video", (8, 9, 10, 11)))


@pytest.fixture(scope="module")
def inputs(tiny: VideoLlama) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "frames": torch.randn(2, 3, 3, 42, 42, generator=generator),
        "spectrograms": torch.randn(2, 5, 1, 128, 204, generator=generator),
    }


@pytest.fixture(scope="module")
def everything(tiny: VideoLlama, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tiny.run({**inputs, "prompt": [PROMPT, PROMPT]}, stages.TENSOR_STAGES)


def test_shapes_are_the_tables(tiny: VideoLlama, everything: dict[str, torch.Tensor]) -> None:
    for name, value in everything.items():
        stages.check(name, value, tiny.config)
    assert everything["patches"].shape == (2, 3, 10, 40)
    assert everything["logits"].shape == (2, 3 + 8 + 1 + 6 + 4, 512)


@pytest.mark.parametrize("branch", CHAIN)
def test_any_stage_can_take_the_place_of_what_is_before_it(tiny, inputs, everything, branch: str) -> None:
    other = {"video": "spectrograms", "audio": "frames"}[branch]
    for name in CHAIN[branch]:
        out = tiny.run({name: everything[name], other: inputs[other], "prompt": [PROMPT, PROMPT]}, ["logits"])
        assert torch.equal(out["logits"], everything["logits"]), name


@pytest.mark.parametrize("name", [n for n in stages.TENSOR_STAGES if n not in ("prefix_mask", "logits")])
def test_every_stage_is_on_the_path(tiny, inputs, everything, name: str) -> None:
    given = {**inputs, "prompt": [PROMPT, PROMPT]}
    for chain in CHAIN.values():
        if name in chain:
            del given[chain[0]]
    if name == "prefix":
        given = {"prompt": [PROMPT, PROMPT]}
    changed = everything[name] + 0.1 * torch.randn(everything[name].shape, generator=torch.Generator().manual_seed(1))
    logits = tiny.run({**given, name: changed}, ["logits"])["logits"]
    assert not torch.allclose(logits, everything["logits"], atol=1e-4)


PARTS = {
    "patches": ["vision_model"],
    "image_queries": ["vision_model", "image_qformer"],
    "frame_tokens": ["vision_model", "image_qformer", "frame_position"],
    "video_prefix": ["vision_model", "image_qformer", "frame_position", "video_qformer", "video_projection"],
    "audio_features": ["imagebind"],
    "audio_prefix": ["imagebind", "segment_position", "audio_qformer", "audio_projection"],
    "prefix": [],
}


@pytest.mark.parametrize("name", PARTS)
def test_what_comes_before_a_given_stage_is_never_touched(tiny, inputs, everything, name: str) -> None:
    """Its parameters are on no device at all, so that a touch is an error."""
    broken = copy.deepcopy(tiny)
    for part in PARTS[name]:
        broken.get_submodule(part).to("meta")
    if name == "prefix":
        for part in [p for parts in PARTS.values() for p in parts]:
            broken.get_submodule(part).to("meta")
        given = {"prefix": everything["prefix"], "prefix_mask": everything["prefix_mask"]}
    else:
        other = "spectrograms" if name in CHAIN["video"] else "frames"
        given = {name: everything[name], other: inputs[other], "prompt": [PROMPT, PROMPT]}
    assert torch.equal(broken.run(given, ["logits"])["logits"], everything["logits"])
    if PARTS[name]:
        with pytest.raises(Exception, match=r"meta|device"):
            broken.run({**inputs, "prompt": [PROMPT, PROMPT]}, ["logits"])


def test_a_branch_without_a_place_in_the_prompt_is_not_computed(tiny, inputs) -> None:
    broken = copy.deepcopy(tiny)
    broken.imagebind.to("meta")
    broken.run({"frames": inputs["frames"], "prompt": [Prompt(((1,), "video", (5,)))] * 2}, ["logits"])


def test_on_stage_sees_each_stage_once_in_order(tiny, inputs) -> None:
    seen = []
    tiny.run(
        inputs,
        ["video_prefix", "audio_features"],
        on_stage=lambda name, value, seconds: seen.append((name, value.shape, seconds)),
    )
    assert [name for name, _, _ in seen] == [*CHAIN["video"][1:], "audio_features"]
    assert all(seconds > 0 for _, _, seconds in seen)


def test_gradients_flow_to_what_is_given(tiny, everything) -> None:
    patches = everything["patches"].clone().requires_grad_(True)
    prompt = Prompt(((1,), "video", (5,)))
    tiny.run({"patches": patches, "prompt": [prompt, prompt]}, ["logits"])["logits"][:, -1].sum().backward()
    assert patches.grad is not None
    assert (patches.grad.abs().sum(dim=(2, 3)) > 0).all()


def test_padding_changes_nothing(tiny, inputs) -> None:
    """A batch of prompts of different lengths gives each its own logits."""
    short, long = Prompt(((1, 5), "video", (6,))), Prompt(((1, 5, 7, 9, 11, 13), "video", (6, 8, 10)))
    batch = tiny.run({"frames": inputs["frames"], "prompt": [short, long]}, ["logits", "prefix_mask"])
    for i, prompt in enumerate((short, long)):
        alone = tiny.run({"frames": inputs["frames"][i : i + 1], "prompt": prompt}, ["logits"])["logits"][0]
        torch.testing.assert_close(batch["logits"][i][batch["prefix_mask"][i]], alone, atol=2e-5, rtol=0)


def test_a_padded_prefix_needs_its_mask(tiny, everything) -> None:
    with pytest.raises(VltError, match="give 'prefix_mask' or 'prompt'"):
        tiny.run({"prefix": everything["prefix"]}, ["logits"])
    one = tiny.run({"prefix": everything["prefix"][:1]}, ["logits"])["logits"]
    torch.testing.assert_close(one, everything["logits"][:1], atol=2e-5, rtol=0)


def test_from_clip_and_question(boxed: VideoLlama, media) -> None:
    clip = Clip(media("a.mp4"))
    out = boxed.run({"clip": clip, "question": "What?"}, ["frames", "spectrograms", "logits", "prompt"])
    assert out["frames"].shape == (1, 8, 3, 64, 64)
    assert out["prompt"][0].branches == ("audio", "video")
    silent = boxed.run({"clip": Clip(media("silent.mp4", sound=None)), "question": "What?"}, ["logits", "prompt"])
    assert silent["prompt"][0].branches == ("video",)
    both = [clip, Clip(media("a.mp4"))]
    assert boxed.run({"clip": both, "question": "What?"}, ["logits"])["logits"].shape[0] == 2
    with pytest.raises(VltError, match="do not make one batch"):
        boxed.run({"clip": [clip, Clip(media("silent.mp4", sound=None))], "question": "What?"}, ["logits"])
    with pytest.raises(VltError, match="a prompt also needs its clip"):
        boxed.run({"question": "What?"}, ["logits"])
    with pytest.warns(UserWarning, match="positions of frames 8 to 15 were never trained"):
        boxed.run({"frames": out["frames"].repeat(1, 2, 1, 1, 1)}, ["video_prefix"])


BAD = {
    "unknown given": ({"frame": 0}, ["logits"], "no stage 'frame'; nearest: frames"),
    "unknown want": ({"frames": 0}, ["logit"], "no stage 'logit'; nearest: logits"),
    "missing": ({"frames": 0}, ["audio_prefix"], "'audio_prefix' cannot be computed: 'clip' was not given"),
    "idle": ({"frames": 0, "patches": 0}, ["video_prefix"], "given 'frames' would change nothing"),
    "other branch": ({"frames": 0, "spectrograms": 0}, ["video_prefix"], "given 'spectrograms' would change nothing"),
    "nothing": ({"frames": 0}, [], "no stage is wanted"),
    "no tensor": ({"frames": [1, 2]}, ["patches"], "was given as list; expected a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(tiny, everything, name: str) -> None:
    given, want, message = BAD[name]
    given = {k: everything.get(k, torch.zeros(1)) if v == 0 else v for k, v in given.items()}
    with pytest.raises(VltError, match=message):
        tiny.run(given, want)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3, 42, 41), r"\[2, 3, 3, 42, 41\]; expected \[clip, frame 1 to 32, channel 3, height 42, width 42\]"),
        ((3, 3, 42, 42), "expected"),
        ((2, 33, 3, 42, 42), "frame 1 to 32"),
        ((2, 0, 3, 42, 42), "frame 1 to 32"),
    ],
)
def test_wrong_shapes(tiny, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(VltError, match=message):
        tiny.run({"frames": torch.zeros(shape)}, ["patches"])


def test_wrong_numbers(tiny, everything) -> None:
    with pytest.raises(VltError, match=r"was given as torch.uint8; expected floating point"):
        tiny.run({"frames": torch.zeros(1, 3, 3, 42, 42, dtype=torch.uint8)}, ["patches"])
    with pytest.raises(VltError, match=r"differs in its number of clips \(frames: 1, prompt: 2\)"):
        tiny.run({"frames": torch.zeros(1, 3, 3, 42, 42), "prompt": [PROMPT, PROMPT]}, ["prefix"])
    with pytest.raises(VltError, match="numbers that are not finite"):
        tiny.run({"frames": torch.full((1, 3, 3, 42, 42), float("nan"))}, ["patches"])
    with pytest.raises(VltError, match="'clip' was given as an empty list"):
        tiny.run({"clip": []}, ["frames"])
    with pytest.raises(VltError, match="values other than 0 and 1"):
        tiny.run({"prefix": everything["prefix"], "prefix_mask": torch.full(everything["prefix"].shape[:2], 0.5)}, ["logits"])
    with pytest.raises(VltError, match="'prefix' was given with 22 tokens; its prompt or mask has 21"):
        tiny.run({"prefix": everything["prefix"], "prefix_mask": everything["prefix_mask"][:, 1:]}, ["logits"])
    with pytest.raises(VltError, match="'clip' takes a Clip or a list of them; got PosixPath"):
        tiny.run({"clip": Path("a.mp4")}, ["frames"])
    with pytest.raises(VltError, match="the prefix is 2049 tokens long; the language model has 2048 positions"):
        tiny.run({"prefix": torch.zeros(1, 2049, 48)}, ["logits"])
    with pytest.raises(VltError, match="token id 600: the language model has 512"):
        tiny.run({"prompt": Prompt(((1, 600),))}, ["prefix"])


def test_every_stage_checks_every_axis(tiny, everything) -> None:
    """One more along any axis that has a size is refused, and says the stage."""
    for name, value in everything.items():
        for axis, label in enumerate(stages.stage(name).axes):
            if (name, label) not in stages.axis_sizes(tiny.config):
                continue
            longer = [value] * 40 if label in ("frame", "segment", "frame x image query") else [value, value.narrow(axis, 0, 1)]
            wrong = torch.cat(longer, dim=axis)
            with pytest.raises(VltError, match=f"stage '{name}' was given with shape"):
                stages.check(name, wrong, tiny.config)


def test_the_table_is_a_graph_in_order() -> None:
    names = list(stages.STAGES)
    for stage in stages.STAGES.values():
        assert all(need in names for need in stage.needs)
        assert all(names.index(need) < names.index(stage.name) for need in stage.needs)
