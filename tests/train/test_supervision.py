"""Which words are learnt: the original's training texts, token by token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaTokenizer

from tests.conftest import REFERENCE, Numbers, byte_tokenizer
from tests.model.test_reference import caption_prompts, instruction_prompts
from vlt.errors import VltError
from vlt.inputs.prompt import Prompt, Slot
from vlt.train import supervision
from vlt.train.supervision import IGNORED, Learnt

SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>"}


def shown(prompt: Prompt) -> str:
    """A prompt of the byte tokenizer as text: slots in braces, what is learnt between ⟦ and ⟧."""
    assert prompt.labels is not None
    out, labels = "", iter(prompt.labels)
    for part in prompt.parts:
        if isinstance(part, str):
            out += f"{{{part}}}"
            continue
        for i, label in zip(part, next(labels), strict=True):
            assert label in (i, IGNORED)
            text = SPECIAL.get(i) or chr(i - 3)
            out += f"⟦{text}⟧" if label == i else text
    return out.replace("⟧⟦", "")


def said(lesson: supervision.Lesson, max_tokens: int | None = None) -> str:
    return shown(supervision.tokenise(lesson, byte_tokenizer(), max_tokens))


def turns(branch: str) -> list[tuple[tuple[str | Slot, ...], str]]:
    return [(("<Image>", Slot(branch), "</Image>\nwhat?"), "a dog."), (("why?",), "so.")]


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_a_caption_is_learnt_with_its_line_break_and_follows_the_soft_tokens(branch: str) -> None:
    assert said(supervision.caption("a dog", branch)) == f"<s>{{{branch}}}⟦a dog\n⟧"


def test_a_description_is_learnt_with_its_end_sign() -> None:
    request = "<Image><ImageHere></Image> Say it."
    assert (
        said(supervision.description(request, "a dog", "video", "vicuna"))
        == "<s>###Human: <Image>{video}</Image> Say it. ###Assistant: ⟦a dog###⟧"
    )
    assert (
        said(supervision.description(request, "a dog", "audio", "llama2"))
        == "<s>[INST] <Image>{audio}</Image> Say it. [/INST] ⟦a dog</s>⟧"
    )


def test_of_a_conversation_answers_and_signs_are_learnt() -> None:
    assert said(supervision.conversation(turns("video"), "vicuna")) == (
        "<s>\n\n⟦###⟧Human: <Image>{video}</Image>\nwhat?\n⟦###Assistant: a dog.\n###⟧Human: why?\n⟦###Assistant: so.\n###⟧"
    )
    assert said(supervision.conversation(turns("audio"), "llama2")) == (
        "<s>[INST] <<SYS>>\n \n<</SYS>>\n\n<Image>{audio}</Image>\nwhat? [/INST] ⟦a dog. </s>⟧<s>[INST] why? [/INST] ⟦so. </s>⟧"
    )


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_descriptions_are_the_originals_token_for_token(full: Numbers, branch: str) -> None:
    """Both of the reference's sets of training texts, ids and labels. (Those named "multi" passed through the original's
    way for conversations, but they hold descriptions too.)"""
    stored = json.loads((REFERENCE / "full_tiny_prompts.json").read_text())["train_caption"]
    both = {stored["prompt"]: caption_prompts(full, branch, 0)}
    both["###Human: <Video><ImageHere></Video> Say it. ###Assistant: "] = instruction_prompts(full, branch)
    for prompt, expected in both.items():
        request = prompt.removeprefix("###Human: ").removesuffix(" ###Assistant: ")
        for caption, theirs in zip(stored["captions"], expected, strict=True):
            lesson = supervision.description(request, caption, branch, "vicuna")
            assert supervision.tokenise(lesson, byte_tokenizer()) == theirs


def llama_like(*words: str) -> LlamaTokenizer:
    """A tokenizer that cuts as LLaMA's does: a word holds the space before it, "###" has two tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)}}
    merges = [("#", "#"), ("▁", "a"), *(("▁" + word[:i] if i else "▁", word[i]) for word in words for i in range(len(word)))]
    for token in [*map(chr, range(33, 127)), "▁", *(a + b for a, b in merges)]:
        vocabulary.setdefault(token, len(vocabulary))
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=False)


def tokens(prompt: Prompt, tokenizer: Any) -> list[tuple[str, bool]]:
    """(token, whether it is learnt) of all runs."""
    assert prompt.labels is not None
    runs = [part for part in prompt.parts if not isinstance(part, str)]
    pairs = zip(sum(runs, ()), sum(prompt.labels, ()), strict=True)
    return [(tokenizer.convert_ids_to_tokens(i), label != IGNORED) for i, label in pairs]


def test_the_sign_before_a_question_is_learnt_as_in_the_original() -> None:
    """The original masks a question from its third token on, and LLaMA's "###" has two tokens: the whole sign is learnt
    and nothing of what follows. That is where ours is the same. With another number of tokens (bytes: three) the
    original would learn only the first two of them; ours always learns the sign, whole and alone."""
    tokenizer = llama_like()
    all_tokens = tokens(supervision.tokenise(supervision.conversation(turns("video"), "vicuna"), tokenizer), tokenizer)
    signs = [i for i, (token, _) in enumerate(all_tokens) if token == "##"]
    assert [all_tokens[i + 2][0] for i in signs[:-1]] == ["H", "A", "H", "A"]
    assert [known for _, known in all_tokens[: signs[0]]] == [False] * signs[0]
    for question, answer in ((signs[0], signs[1]), (signs[2], signs[3])):
        learnt = [known for _, known in all_tokens[question:answer]]
        assert learnt == [True, True] + [False] * (answer - question - 2)
    assert all(known for _, known in [*all_tokens[signs[1] : signs[2]], *all_tokens[signs[3] :]])
    assert all_tokens[-1] == ("#", True)


@pytest.mark.parametrize(
    ("kind", "template"), [("description", "vicuna"), ("description", "llama2"), ("conversation", "llama2")]
)
def test_the_first_word_of_an_answer_is_learnt_where_words_hold_the_space_before_them(kind: str, template: str) -> None:
    if kind == "description":
        lesson = supervision.description("<Image><ImageHere></Image> Say.", "dog a", "video", template)
    else:
        lesson = supervision.conversation([(("<Image>", Slot("video"), "what?"), "dog a")], template)
    tokenizer = llama_like("dog")
    assert [known for token, known in tokens(supervision.tokenise(lesson, tokenizer), tokenizer) if token == "▁dog"] == [True]


def test_a_text_is_cut_after_max_tokens_and_soft_tokens_do_not_count() -> None:
    lesson = supervision.description("<Image><ImageHere></Image> Say.", "a dog", "video", "vicuna")
    whole = supervision.tokenise(lesson, byte_tokenizer())
    length = sum(len(part) for part in whole.parts if not isinstance(part, str))
    assert supervision.tokenise(lesson, byte_tokenizer(), length) == whole
    assert said(lesson, length - 4).endswith("###Assistant: ⟦a do⟧")
    with pytest.raises(VltError, match="nothing of this text is learnt: what is kept of it holds no answer"):
        supervision.tokenise(lesson, byte_tokenizer(), 20)


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_of_a_caption_only_what_is_learnt_counts(kept: int) -> None:
    """The begin token, the request and the soft tokens do not; the end sign does."""
    for lesson, before, end in (
        (supervision.caption("a dog", "video"), "<s>{video}", "\n"),
        (
            supervision.description("<Image><ImageHere></Image> Say.", "a dog", "video", "vicuna"),
            "<s>###Human: <Image>{video}</Image> Say. ###Assistant: ",
            "###",
        ),
    ):
        cut = supervision.tokenise(lesson, byte_tokenizer(), max_learnt=kept)
        assert shown(cut) == f"{before}⟦{'a dog'[:kept]}⟧"
        length = len(f"a dog{end}")
        assert shown(supervision.tokenise(lesson, byte_tokenizer(), max_learnt=length)) == f"{before}⟦a dog{end}⟧"
        with pytest.raises(VltError, match="nothing of this text is learnt"):
            supervision.tokenise(lesson, byte_tokenizer(), max_learnt=0)


@pytest.mark.parametrize("template", ["vicuna", "llama2"])
@pytest.mark.parametrize("caption", ["dog a", "a dog", "...dog"])
def test_a_description_is_tokenised_as_in_the_original(template: str, caption: str) -> None:
    """What stands before the picture, what stands behind it, and the caption: each by itself. Where words hold the space
    before them, other tokens come of it than of the whole text."""
    tokenizer = llama_like("dog")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    before, after, end = {
        "vicuna": ("###Human: <Image>", "</Image> Say. ###Assistant: ", "###"),
        "llama2": ("[INST] <Image>", "</Image> Say. [/INST] ", "</s>"),
    }[template]
    lesson = supervision.description("<Image><ImageHere></Image> Say.", caption, "video", template)
    prompt, answer = supervision.tokenise(lesson, tokenizer), ids(f"{caption}{end}")
    assert prompt.parts == ((1, *ids(before)), "video", (*ids(after), *answer))
    assert prompt.labels == ((IGNORED,) * (1 + len(ids(before))), (IGNORED,) * len(ids(after)) + answer)
    if caption == "dog a":
        assert (*ids(after), *answer) != ids(f"{after}{caption}{end}")


def test_letters_of_several_bytes_are_learnt_whole() -> None:
    prompt = supervision.tokenise(("é", Learnt("é"), "é"), byte_tokenizer())
    assert prompt.parts == ((1, *(byte + 3 for byte in "ééé".encode())),)
    assert prompt.labels is not None
    assert [label != IGNORED for label in prompt.labels[0]] == [False, False, False, True, True, False, False]
