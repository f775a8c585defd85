"""Answers: batches equal one-by-one, a clip is encoded once, and the stop sign ends an answer."""

from __future__ import annotations

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import byte_tokenizer, stand_in
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.model.answer import Encoded, _pieces
from vlt.model.config import VideoLlamaConfig
from vlt.model.video_llama import VideoLlama


@pytest.fixture(scope="module")
def clips(media, tmp_path_factory) -> dict[str, Clip | None]:
    picture = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    return {
        "video and sound": Clip(media("a.mp4")),
        "longer": Clip(media("long.mp4", seconds=5.0)),
        "silent": Clip(media("silent.mp4", sound=None)),
        "one frame": Clip(media("one.mp4", frames=1, sound=None)),
        "still": Clip(picture),
        "sound": Clip(media("a.wav", size=None, sound="pcm_s16le")),
        "text": None,
    }


def test_a_batch_answers_as_one_by_one(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    questions = [f"Question {'very ' * i}long?" for i in range(len(clips))]
    together = boxed.answer(list(clips.values()), questions, max_new_tokens=16)
    alone = [boxed.answer(c, q, max_new_tokens=16) for c, q in zip(clips.values(), questions, strict=True)]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert len({a.ids for a in together}) > 3  # they are not all the same answer
    assert [a.prompt for a in together] == [a.prompt for a in alone]


def test_the_cache_changes_nothing(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    """Greedy decoding by hand, the whole prompt again for every token."""
    clip = boxed.encode(clips["video and sound"])
    answer = boxed.answer(clip, "What?", max_new_tokens=10)
    prompt, given = answer.prompt, {f"{b}_prefix": soft[None] for b, soft in clip.prefix.items()}
    ids: list[int] = []
    assert 3 < len(answer.ids) <= 10
    for _ in answer.ids:
        ids.append(int(boxed.run({"prompt": prompt.followed_by(ids), **given}, ["logits"])["logits"][0, -1].argmax()))
    assert answer.ids == tuple(ids)


def test_several_turns_encode_once_and_remember(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    with patch.object(boxed.vision_model, "forward", wraps=boxed.vision_model.forward) as eye:
        chat = boxed.chat(clips["silent"])
        first = chat.ask("What is it?", max_new_tokens=8)
        second = chat.ask("And then?", max_new_tokens=8)
    assert eye.call_count == 1
    assert [q for q, _ in chat.turns] == ["What is it?", "And then?"]
    by_hand = boxed.answer(clips["silent"], "And then?", history=[("What is it?", first.text)], max_new_tokens=8)
    assert second.ids == by_hand.ids
    assert second.prompt == by_hand.prompt
    assert second.prompt != boxed.answer(clips["silent"], "And then?", max_new_tokens=8).prompt


def test_sampling_is_repeatable_and_leaves_the_generator_alone(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    ask = lambda seed, **o: boxed.answer(None, "Sing.", sample=True, seed=seed, max_new_tokens=12, **o).ids  # noqa: E731
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert ask(1) == ask(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({ask(seed, temperature=5.0, top_p=1.0) for seed in range(5)}) > 1
    assert ask(1, top_p=1e-6) == boxed.answer(None, "Sing.", max_new_tokens=12).ids


def scripted(model: VideoLlama, text: str) -> VideoLlama:
    """A model whose language model says `text` and then goes on with "x": logits are set, all else is real."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    real, step = model.language_model.forward, iter([*ids, *[ord("x") + 3] * 500])

    def forward(*args, **options):
        out = real(*args, **options)
        out.logits[:, -1] = 0
        out.logits[:, -1, next(step)] = 100
        return out

    model.language_model.forward = forward
    return model


@pytest.mark.parametrize(
    ("says", "template", "text", "ended"),
    [
        ("a red disc###Human: why", "vicuna", "a red disc", "stop"),
        ("Assistant: a bell ###", "vicuna", "a bell", "stop"),
        ("a # and ## and ###", "vicuna", "a # and ## and", "stop"),
        ("a bell</s>x", "llama2", "a bell", "stop"),
        ("on and on", "vicuna", "on and onxxxxx", "length"),
    ],
)
def test_the_stop_sign_ends_an_answer(says: str, template: str, text: str, ended: str) -> None:
    model = scripted(stand_in(), says)
    model.config.template = template
    limit = len(says) + 5 if ended == "length" else 200
    with patch.object(model.language_model, "forward", wraps=model.language_model.forward) as forward:
        answer = model.answer(None, "Go.", max_new_tokens=limit)
    steps = forward.call_count
    assert (answer.text, answer.ended) == (text, ended)
    assert steps <= len(says) if ended == "stop" else steps == limit  # it does not go on behind the stop sign
    assert "".join(answer.tokens).split("###")[0].split("</s>")[0].startswith(text[:5] if ended == "length" else says[:5])
    assert len(answer.tokens) == len(answer.ids) <= limit
    if ended == "stop":
        assert "".join(answer.tokens).endswith(("###", "</s>"))


def test_the_end_token_ends_an_answer() -> None:
    model = stand_in()
    real = model.language_model.forward

    def forward(*args, **options):
        out = real(*args, **options)
        out.logits[:, -1] = 0
        out.logits[:, -1, 2] = 100
        return out

    model.language_model.forward = forward
    answer = model.answer(None, "Go.", max_new_tokens=20)
    assert (answer.ids, answer.text, answer.ended) == ((2,), "", "stop")


def test_branches_can_be_chosen(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    clip = clips["video and sound"]
    assert boxed.answer(clip, "What?", max_new_tokens=1).prompt.branches == ("audio", "video")
    assert boxed.answer(clip, "What?", branches=["video"], max_new_tokens=1).prompt.branches == ("video",)
    assert boxed.answer(clip, "What?", branches=["audio"], max_new_tokens=1).prompt.branches == ("audio",)


def test_coverage_and_number_of_frames_reach_the_encoders(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    clip = clips["longer"]
    original, whole = boxed.encode(clip, coverage="original"), boxed.encode(clip)  # as the box was trained
    assert torch.equal(original.prefix["video"], whole.prefix["video"])
    assert not torch.equal(original.prefix["audio"], whole.prefix["audio"])
    four = boxed.encode(clip, n_frames=4)
    assert "contains 4 frames" in four.sampled
    assert not torch.equal(original.prefix["video"], four.prefix["video"])
    with pytest.warns(UserWarning, match="positions of frames 8 to 8 were never trained"):
        boxed.encode(clip, n_frames=9)
    assert boxed.encode(clip, branches="video").branches == ("video",)
    with pytest.raises(VltError, match="n_frames = 4 would change nothing"):
        boxed.encode(clips["still"], n_frames=4)
    for question in ("", None, 3):
        with pytest.raises(VltError, match="a question is a text with something in it"):
            boxed.answer(clip, question)


BAD = {
    "no such branch": ({"branches": ["vidio"]}, "no branch 'vidio'; nearest: video"),
    "no branch": ({"branches": []}, "no branch was asked for"),
    "too many frames": ({"n_frames": 33}, "33 frames were asked for; this model has positions for 32"),
    "no frames": ({"n_frames": 0}, "at least 1"),
    "too many tokens": (
        {"max_new_tokens": 2000},
        r"max_new_tokens is 2000; .* of the language model's 2048 positions, which leaves",
    ),
    "temperature alone": ({"temperature": 0.5, "seed": 3}, "temperature, seed would change nothing without sample=True"),
    "temperature": ({"sample": True, "temperature": -1.0}, r"temperature must be above 0 and top_p in \(0, 1\]"),
    "generate's own": ({"do_sample": True}, "no option 'do_sample' of answers; nearest: sample"),
    "misspelt": ({"n_frame": 4}, "no option 'n_frame' of answers; nearest: n_frames"),
    "several answers": ({"num_return_sequences": 2}, "no option 'num_return_sequences'"),
    "idle coverage": ({"branches": ["video"], "coverage": "whole"}, "coverage = 'whole' would change nothing: the audio of"),
    "idle frames": ({"branches": ["audio"], "n_frames": 4}, "n_frames = 4 would change nothing: the video of"),
    "coverage": ({"coverage": "half"}, "no coverage 'half'"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens is 0; the prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(boxed: VideoLlama, clips: dict[str, Clip | None], name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(VltError, match=message):
        boxed.answer(clips["longer"], "What?", **options)


def test_encoding_options_without_a_clip_are_refused(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    encoded = boxed.encode(clips["longer"])
    for clip, options in ((encoded, {"branches": ["video"]}), (encoded, {"n_frames": 3}), (None, {"coverage": "whole"})):
        with pytest.raises(VltError, match=f"{next(iter(options))} would change nothing"):
            boxed.answer(clip, "What?", **options)
    with pytest.raises(VltError, match="given as str; open it first"):
        boxed.answer("a.mp4", "What?")
    with pytest.raises(VltError, match="given as str; open it first"):
        boxed.chat("a.mp4")


def test_soft_tokens_must_fit_the_prompt(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    encoded = boxed.encode(clips["longer"])
    prompt = boxed.prompt(encoded, "What?")
    with pytest.raises(VltError, match="soft tokens of: audio, video; given were those of: none"):
        boxed.generate_from([prompt, prompt], [encoded.prefix, {}])
    with pytest.raises(VltError, match="2 prompts and 1 sets"):
        boxed.generate_from([prompt, prompt], [encoded.prefix])


def test_answers_in_the_middle_of_training(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    """No dropout while answering, and training goes on after."""
    model = copy.deepcopy(boxed).train()
    model.vision_model.eval()
    assert (
        model.answer(clips["longer"], "What?", max_new_tokens=4).ids
        == boxed.answer(clips["longer"], "What?", max_new_tokens=4).ids
    )
    assert model.training
    assert model.video_qformer.training
    assert not model.vision_model.training


def test_the_prompt_names_the_frames_that_are_given(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    clip = clips["silent"]
    frames = clip.frames(4, 64)[None]
    prompt = boxed.run({"clip": clip, "question": "What?", "frames": frames}, ["prompt", "logits"])["prompt"][0]
    text = boxed.tokenizer.decode([i for part in prompt.parts if not isinstance(part, str) for i in part])
    assert "contains 4 frames sampled" in text
    assert prompt == boxed.prompt(clip, "What?", n_frames=4)


def test_frames_alone_do_not_need_the_sound(boxed: VideoLlama, media, tmp_path) -> None:
    from tests.inputs.test_clip import damaged_sound

    damaged_sound(media("a.mkv"), tmp_path / "noise.mkv")
    clip = Clip(tmp_path / "noise.mkv")
    boxed.run({"clip": clip}, ["patches"])
    boxed.encode(clip, branches=["video"])
    assert "sound" not in vars(clip)  # it was never decoded


def test_pieces_of_text_join_to_the_text() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("añ→b", add_special_tokens=False)
    texts = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    pieces = _pieces(texts)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == "añ→b"
    assert pieces == ("a", "", "ñ", "", "", "→", "b")


def test_a_branch_that_the_clip_has_not(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    with pytest.raises(VltError, match="has no usable audio"):
        boxed.answer(clips["silent"], "What?", branches=["audio"])
    with pytest.raises(VltError, match="has no usable video"):
        boxed.answer(clips["sound"], "What?", branches=["video", "audio"])


def test_a_prompt_that_is_too_long_is_refused_not_cut(boxed: VideoLlama) -> None:
    with pytest.raises(VltError, match=r"max_new_tokens is 300; .* which leaves 0"):
        boxed.answer(None, "word " * 2000)


def test_as_many_questions_as_clips(boxed: VideoLlama) -> None:
    with pytest.raises(VltError, match="2 clips and 3 questions"):
        boxed.answer([None, None], ["a", "b", "c"])


def test_no_tokenizer(tiny: VideoLlama) -> None:
    model = VideoLlama(tiny.config)
    with pytest.raises(VltError, match="this model has no tokenizer"):
        model.answer(None, "What?")


def deaf(boxed: VideoLlama) -> VideoLlama:
    values = boxed.config.to_dict() | {"imagebind_config": None, "audio_qformer_config": None}
    model = VideoLlama(VideoLlamaConfig(**values)).eval()
    model.tokenizer = boxed.tokenizer
    return model


def test_a_model_without_ears(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    model = deaf(boxed)
    assert model.answer(clips["video and sound"], "What?", max_new_tokens=1).prompt.branches == ("video",)
    with pytest.raises(VltError, match="is a sound, and this model has no audio branch"):
        model.answer(clips["sound"], "What?")
    with pytest.raises(VltError, match="needs an audio branch"):
        model.run({"spectrograms": torch.zeros(1, 8, 1, 128, 204)}, ["audio_prefix"])


def test_unreadable_sound_is_refused_unless_it_is_not_wanted(boxed: VideoLlama, media, tmp_path) -> None:
    from tests.inputs.test_clip import damaged_sound

    damaged_sound(media("a.mkv"), tmp_path / "noise.mkv")
    clip = Clip(tmp_path / "noise.mkv")
    with pytest.raises(VltError, match="has sound, but it cannot be used"):
        boxed.answer(clip, "What?")
    assert boxed.answer(clip, "What?", branches=["video"], max_new_tokens=1).prompt.branches == ("video",)


def test_an_encoded_clip_gives_the_same_answer(boxed: VideoLlama, clips: dict[str, Clip | None]) -> None:
    encoded = boxed.encode(clips["longer"])
    assert isinstance(encoded, Encoded)
    assert boxed.answer(encoded, "What?", max_new_tokens=8).ids == boxed.answer(clips["longer"], "What?", max_new_tokens=8).ids
