"""The model in the box. Until a trained one is in `data/box`, seeded random weights of its sizes stand in."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vlt.model.config import VideoLlamaConfig
from vlt.model.video_llama import VideoLlama

SEED = 0
NOTE = "random weights, not trained: its answers mean nothing"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no training: 0 unknown, 1 begin, 2 end, then byte + 3."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary = special | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def config() -> VideoLlamaConfig:
    """The sizes of the box: the published architecture, small."""
    width, heads = 96, 4
    qformer = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    trunk = {"num_hidden_layers": 2, "num_attention_heads": heads}
    return VideoLlamaConfig(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": 4,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "image_size": 64,
            "patch_size": 8,
            "initializer_range": 0.04,
        },
        image_qformer_config={**qformer, "num_hidden_layers": 2, "encoder_hidden_size": width},
        video_qformer_config={**qformer, "encoder_hidden_size": width},
        audio_qformer_config={**qformer, "encoder_hidden_size": 64},
        imagebind_config={
            "joint_size": 64,
            "audio": {**trunk, "hidden_size": 64, "intermediate_size": 256, "kernel_size": 16, "stride": 16},
            "vision": {
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "hidden_size": 96,
                "intermediate_size": 384,
                "image_size": 64,
                "patch_size": 8,
            },
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": heads,
            "intermediate_size": 384,
            "vocab_size": 259,
            "max_position_embeddings": 2048,
            "initializer_range": 0.08,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        num_image_queries=8,
        num_video_queries=16,
    )


def stand_in(dtype: torch.dtype = torch.float32) -> VideoLlama:
    """The box's architecture with random weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = VideoLlama._from_config(config(), dtype=dtype)
    model.config.note = NOTE
    model.tokenizer = byte_tokenizer()
    return model
