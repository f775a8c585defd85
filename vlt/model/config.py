"""The sizes of every part. The defaults are the published 7B model's."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class AudioTrunkConfig(PreTrainedConfig):
    """ImageBind's audio trunk. A spectrogram [mel, time] is cut into patches of `kernel_size`, every `stride`.

    scale: the fixed length of an audio embedding (a vision embedding has length 1). A number here and no weight there,
    so that half precision does not round it.
    """

    model_type = "vlt_imagebind_audio"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    num_mels: int = 128
    num_times: int = 204
    kernel_size: int = 16
    stride: int = 10
    scale: float = 20.0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (mel, time)."""
        rows, columns = ((size - self.kernel_size) // self.stride + 1 for size in (self.num_mels, self.num_times))
        return rows, columns

    @property
    def num_positions(self) -> int:
        return self.grid[0] * self.grid[1] + 1


class VisionTrunkConfig(PreTrainedConfig):
    """ImageBind's vision trunk. Two frames are cut into patches of 2 x `patch_size` x `patch_size`."""

    model_type = "vlt_imagebind_vision"

    hidden_size: int = 1280
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int = 5120
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    image_size: int = 224
    patch_size: int = 14

    @property
    def num_positions(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


class TextTrunkConfig(PreTrainedConfig):
    """ImageBind's text trunk."""

    model_type = "vlt_imagebind_text"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    vocab_size: int = 49408
    num_positions: int = 77


class ImageBindConfig(PreTrainedConfig):
    """ImageBind: trunks that end in one joint space. A trunk that is left out is None; {} means the published sizes."""

    model_type = "vlt_imagebind"
    sub_configs_defaults = {
        "audio": SubConfigSpec(AudioTrunkConfig, optional=True),
        "vision": SubConfigSpec(VisionTrunkConfig, optional=True),
        "text": SubConfigSpec(TextTrunkConfig, optional=True),
    }

    joint_size: int = 1024
    audio: Any = None
    vision: Any = None
    text: Any = None


class VideoQFormerConfig(Blip2QFormerConfig):
    """Two layers that both look at the frame tokens."""

    model_type = "vlt_video_qformer"

    num_hidden_layers: int = 2
    cross_attention_frequency: int = 1
    encoder_hidden_size: int = 768


class AudioQFormerConfig(Blip2QFormerConfig):
    """Two layers that both look at the segment tokens."""

    model_type = "vlt_audio_qformer"

    num_hidden_layers: int = 2
    cross_attention_frequency: int = 1
    encoder_hidden_size: int = 1024


class VideoLlamaConfig(PreTrainedConfig):
    """Video-LLaMA (arXiv 2306.02858): eyes, ears and a language model.

    audio_qformer_config and imagebind_config: both None (as here by default) for a model without ears.
    The parts' configurations may be given as dicts. max_frames, max_segments: rows of the two position tables.
    trained_frames: frames per video in training, and the rows of the frame table that it ever moved. coverage: how the
    segments of sound are placed, "original" or "whole" (see `vlt.inputs.audio`). template: the language model's chat
    format, "vicuna" or "llama2". note: what whoever opens this model must be told.
    """

    model_type = "video_llama"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(Blip2VisionConfig),
        "image_qformer_config": SubConfigSpec(Blip2QFormerConfig),
        "video_qformer_config": SubConfigSpec(VideoQFormerConfig),
        "audio_qformer_config": SubConfigSpec(AudioQFormerConfig, optional=True),
        "imagebind_config": SubConfigSpec(ImageBindConfig, optional=True),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama"),
    }

    vision_config: Any = None
    image_qformer_config: Any = None
    video_qformer_config: Any = None
    audio_qformer_config: Any = None
    imagebind_config: Any = None
    text_config: Any = None
    num_image_queries: int = 32
    num_video_queries: int = 32
    num_audio_queries: int = 8
    max_frames: int = 32
    trained_frames: int = 8
    max_segments: int = 8
    coverage: str = "original"
    template: str = "vicuna"
    note: str = ""
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if (self.audio_qformer_config is None) != (self.imagebind_config is None):
            raise ValueError("audio_qformer_config and imagebind_config go together: give both, or neither")
        image, video, audio = self.image_qformer_config, self.video_qformer_config, self.audio_qformer_config
        chain = [
            ("the image Q-Former", image.encoder_hidden_size, "the ViT", self.vision_config.hidden_size),
            ("the Video Q-Former", video.encoder_hidden_size, "the image Q-Former", image.hidden_size),
        ]
        if audio is not None:
            chain += [("the Audio Q-Former", audio.encoder_hidden_size, "ImageBind", self.imagebind_config.joint_size)]
        for part, wants, source, gives in chain:
            if wants != gives:
                raise ValueError(f"{part} looks at {wants} numbers (encoder_hidden_size), but {source} gives {gives}")

    @property
    def has_ears(self) -> bool:
        return self.imagebind_config is not None

    @property
    def num_queries(self) -> dict[str, int]:
        """Soft tokens that each branch puts into the prompt."""
        return {"video": self.num_video_queries} | ({"audio": self.num_audio_queries} if self.has_ears else {})


AutoConfig.register(VideoLlamaConfig.model_type, VideoLlamaConfig)
