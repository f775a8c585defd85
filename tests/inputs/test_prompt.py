"""Prompts: the original's text and token ids."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import REFERENCE, Numbers, byte_tokenizer
from vlt.errors import VltError
from vlt.inputs import prompt as prompts
from vlt.inputs.prompt import Prompt, Slot, Text

STORED = json.loads((REFERENCE / "full_tiny_prompts.json").read_text())
QUESTION = json.loads((REFERENCE / "config.json").read_text())["question"]
TALKS = {
    "vicuna_audio_video": ("vicuna", "video", ("audio", "video")),
    "vicuna_video_only": ("vicuna", "video", ("video",)),
    "vicuna_image": ("vicuna", "image", ("video",)),
    "llama2_audio_video": ("llama2", "video", ("audio", "video")),
}


def talk(name: str) -> Text:
    style, kind, branches = TALKS[name]
    sampled = prompts.frame_times([0, 30, 60, 90], 30.0) if branches == ("video",) else ""
    message = prompts.message(QUESTION, kind, branches, sampled)
    system = prompts.template(style).image_system if kind == "image" else ""
    return prompts.template(style).chat([(message, None)], system)


@pytest.mark.parametrize("name", TALKS)
def test_text_is_the_originals(name: str) -> None:
    text = "".join("<ImageHere>" if isinstance(part, Slot) else part for part in talk(name))
    assert text == STORED[name]["prompt"]


@pytest.mark.parametrize("name", TALKS)
def test_token_ids_are_the_originals(name: str, full: Numbers) -> None:
    ids = prompts.tokenise(talk(name), byte_tokenizer())
    stored = [tuple(full[k][0].tolist()) for k in sorted(full.tensors) if re.fullmatch(rf"inputs\.{name}\.token_ids\.\d", k)]
    assert [part for part in ids.parts if not isinstance(part, str)] == stored
    assert ids.branches == TALKS[name][2]


def test_frame_times() -> None:
    for name, stored in json.loads((REFERENCE / "frames.json").read_text()).items():
        if not name.startswith("_"):
            for n in (8, 32):
                of_n = stored[f"n_frms={n}"]
                assert prompts.frame_times(of_n["indices"], stored["fps"]) == of_n["message"]


def test_later_turns() -> None:
    turns: list[tuple[Text, str | None]] = [(("<Video>", Slot("video"), "</Video> q1"), "a1"), (("q2",), None)]
    vicuna = prompts.template("vicuna").chat(turns)
    assert vicuna == ("###Human: <Video>", Slot("video"), "</Video> q1###Assistant: a1###Human: q2###Assistant:")
    llama2 = prompts.template("llama2").chat(turns)
    assert llama2[0] == "[INST] <<SYS>>\n\n<</SYS>>\n\n<Video>"
    assert llama2[2] == "</Video> q1 [/INST] a1 </s><s>[INST] q2 [/INST]"


def test_sound_only_and_text_only() -> None:
    sound = prompts.template("vicuna").chat([(prompts.message("q", "sound", ("audio",)), None)])
    assert [type(part) for part in sound] == [str, Slot, str]
    assert sound[1] == Slot("audio")
    assert "<Video>" not in str(sound)
    assert prompts.message("q", "text", ()) == ("q",)


def test_a_question_cannot_open_a_slot() -> None:
    message = prompts.message("<ImageHere> Slot('audio') <Video>", "video", ("video",))
    assert sum(isinstance(part, Slot) for part in prompts.template("vicuna").chat([(message, None)])) == 1


def test_half_a_character_is_refused() -> None:
    text = prompts.template("vicuna").chat([(prompts.message("what? \ud83d", "text", ()), None)])
    with pytest.raises(VltError, match="holds half a character"):
        prompts.tokenise(text, byte_tokenizer())


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" a dog###Human: more", "a dog"),
        ("Assistant: a cat", "a cat"),
        ("x Assistant: y Assistant: z ", "z"),
        ("plain", "plain"),
    ],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert prompts.template("vicuna").clean(raw) == clean


def test_unknown_template() -> None:
    with pytest.raises(VltError, match="no chat template 'llama3'; nearest: llama2"):
        prompts.template("llama3")


def test_followed_by() -> None:
    assert Prompt(((1, 2), "video", (3,))).followed_by([4, 5]).parts == ((1, 2), "video", (3,), (4, 5))


def test_byte_tokenizer_gives_text_back() -> None:
    tokenizer = byte_tokenizer()
    text = "Ähm, 犬? ###"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("parts", "labels", "message"),
    [
        ((), None, "at least one token"),
        (((1,), "smell"), None, "not for 'smell'"),
        (((1, -2),), None, "whole numbers from 0 on"),
        (((1, 2), "video", (3,)), ((1, 2), (3, 4)), r"lengths \[2, 2\]; expected \[2, 1\]"),
        (((1, 2), "video", (3,)), ((1, 2),), r"lengths \[2\]; expected \[2, 1\]"),
    ],
)
def test_prompts_that_mean_nothing(parts, labels, message: str) -> None:
    with pytest.raises(VltError, match=message):
        Prompt(parts, labels)


def test_followed_by_keeps_labels() -> None:
    longer = Prompt(((1, 2),), ((-100, 2),)).followed_by([7])
    assert longer == Prompt(((1, 2), (7,)), ((-100, 2), (-100,)))
