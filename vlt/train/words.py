"""The box's tokenizer: the world's words whole, everything else letter by letter or byte by byte."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from vlt.inputs import prompt as prompts
from vlt.train import talk

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


def tokenizer() -> PreTrainedTokenizerFast:
    """As few pieces as can be. Nothing is learnt: the list of pieces is the vocabulary. What is encoded decodes to the
    same text (but for the sign that stands for a space), and no space is put in front (unlike LLaMA's)."""
    special, known = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    scores = dict.fromkeys(special, 0.0) | dict.fromkeys(known, -9.0) | dict.fromkeys(_pieces(), -1.0)
    made = Tokenizer(models.Unigram(list(scores.items()), unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _pieces() -> Iterator[str]:
    yield from ("###", "\n", SPACE, SPACE * 17, SPACE * 18, "</", *string.ascii_letters, *string.digits, *string.punctuation)
    yield from (f"{SPACE}{second}" for second in range(100))
    yield from (f".{tenth}" for tenth in range(10))
    for word in [*talk.vocabulary(), *_prompt_words()]:
        yield from (word, SPACE + word)


def _prompt_words() -> list[str]:
    """The words of the chat around a question."""
    asked = (
        (kind, branches) for kind in ("video", "image", "sound") for branches in (("audio", "video"), ("video",), ("audio",))
    )
    said = [prompts.message("", kind, branches, prompts.frame_times([0], 1.0)) for kind, branches in asked]
    text = " ".join(part for message in said for part in message if isinstance(part, str))
    text += f" Human Assistant {prompts.template('vicuna').image_system}"
    return sorted(set(re.findall(r"[A-Za-z]+", text)))
