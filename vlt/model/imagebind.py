"""ImageBind's audio, vision and text trunks (arXiv 2305.05665): three transformers that end in one space.

No library carries them. Token order inside a trunk: the class token first, then patches row by row (text: words).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.blip_2.modeling_blip_2 import eager_attention_forward

from vlt.errors import VltError, nearest
from vlt.model.config import AudioTrunkConfig, ImageBindConfig, TextTrunkConfig, VisionTrunkConfig

TEXT_SCALE = 1 / 0.07  # learnt from here on
MAX_SCALE = 100.0

TrunkConfig = AudioTrunkConfig | VisionTrunkConfig | TextTrunkConfig
STEM_EPS = 1e-5  # the LayerNorm after the audio patches is a plain torch one


class Attention(nn.Module):
    """Multi-head self-attention through transformers' attention interface.

    Audio adds a learnt key and value behind the tokens' own (`bias_k`, `bias_v`): a place to look at nothing.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.n_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.n_heads) ** -0.5
        self.is_causal = False  # text brings its own mask
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.extra_key = isinstance(config, AudioTrunkConfig)
        if self.extra_key:
            self.bias_k = nn.Parameter(torch.empty(1, 1, config.hidden_size))
            self.bias_v = nn.Parameter(torch.empty(1, 1, config.hidden_size))

    def forward(self, x: Float[Tensor, "b n d"], mask: Tensor | None = None) -> Float[Tensor, "b n d"]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        if self.extra_key:
            key = torch.cat([key, self.bias_k.expand(len(x), -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(len(x), -1, -1)], dim=1)
        split = [rearrange(t, "b n (h d) -> b h n d", h=self.n_heads) for t in (query, key, value)]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, *split, attention_mask=mask, scaling=self.scaling, dropout=0.0)
        return self.out(rearrange(mixed, "b n h d -> b n (h d)"))


class Mlp(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Float[Tensor, "b n d"], mask: Tensor | None = None) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm_1(x), mask)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """Stem, positions, blocks, head: gives each input's embedding, normalised to the modality's length.

    A modality says what enters the first block (`tokens`), which output is read (`pooled`), and how long the embedding
    is (`scale`).
    """

    def __init__(self, config: TrunkConfig, joint_size: int) -> None:
        super().__init__()
        self.config = config
        self.position = nn.Parameter(torch.empty(1, config.num_positions, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, joint_size, bias=False)

    def tokens(self, inputs: Tensor) -> Float[Tensor, "b n d"]:
        raise NotImplementedError

    def pooled(self, x: Float[Tensor, "b n d"], inputs: Tensor) -> Float[Tensor, "b d"]:
        return x[:, 0]

    def scale(self) -> Tensor | float:
        return 1.0

    def mask(self, x: Float[Tensor, "b n d"]) -> Tensor | None:
        return None

    def forward(self, inputs: Tensor) -> Float[Tensor, "b joint"]:
        x = self.tokens(inputs)
        mask = self.mask(x)
        for block in self.blocks:
            x = block(x, mask)
        embedding = self.head(self.pooled(self.head_norm(x), inputs))
        return nn.functional.normalize(embedding, dim=-1) * self.scale()


class AudioTrunk(Trunk):
    """[b, 1, mel, time] -> [b, joint]."""

    def __init__(self, config: AudioTrunkConfig, joint_size: int) -> None:
        super().__init__(config, joint_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.stem = nn.Conv2d(1, config.hidden_size, config.kernel_size, config.stride, bias=False)
        self.stem_norm = nn.LayerNorm(config.hidden_size, eps=STEM_EPS)

    def tokens(self, x: Float[Tensor, "b 1 mel time"]) -> Float[Tensor, "b n d"]:
        patches = self.stem_norm(rearrange(self.stem(x), "b d h w -> b (h w) d"))
        return torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.position

    def scale(self) -> float:
        return self.config.scale


class VisionTrunk(Trunk):
    """[b, 3, frame, height, width] with two frames, or a still [b, 3, height, width] that is doubled -> [b, joint]."""

    def __init__(self, config: VisionTrunkConfig, joint_size: int) -> None:
        super().__init__(config, joint_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        kernel = (2, config.patch_size, config.patch_size)
        self.stem = nn.Conv3d(3, config.hidden_size, kernel, kernel, bias=False)
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def tokens(self, x: Tensor) -> Float[Tensor, "b n d"]:
        if x.ndim == 4:
            x = repeat(x, "b c h w -> b c 2 h w")
        patches = rearrange(self.stem(x), "b d t h w -> b (t h w) d")
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.position
        return self.pre_norm(tokens)


class TextTrunk(Trunk):
    """Token ids [b, n], ended by the vocabulary's last id -> [b, joint]."""

    def __init__(self, config: TextTrunkConfig, joint_size: int) -> None:
        super().__init__(config, joint_size)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.log_scale = nn.Parameter(torch.tensor(math.log(TEXT_SCALE)))

    def tokens(self, x: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return self.words(x) + self.position

    def pooled(self, x: Float[Tensor, "b n d"], inputs: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        return x[torch.arange(len(x), device=x.device), inputs.argmax(dim=-1)]

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def mask(self, x: Float[Tensor, "b n d"]) -> Tensor:
        n = x.shape[1]
        return torch.full((n, n), float("-inf"), device=x.device, dtype=x.dtype).triu(1)[None, None]


_TRUNKS = {"audio": AudioTrunk, "vision": VisionTrunk, "text": TextTrunk}


class ImageBind(PreTrainedModel):
    """The trunks that the configuration names: `imagebind.audio`, `imagebind.vision`, `imagebind.text`."""

    config_class = ImageBindConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__(config)
        config._attn_implementation = config._attn_implementation  # hands it on to the trunks' own configurations
        for name, kind in _TRUNKS.items():
            if (trunk := getattr(config, name)) is not None:
                self.add_module(name, kind(trunk, config.joint_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = getattr(getattr(module, "config", None), "initializer_range", 0.02)
        for name in ("position", "class_token", "bias_k", "bias_v"):
            if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                init.normal_(parameter, std=std)
        if isinstance(module, TextTrunk):
            init.constant_(module.log_scale, math.log(TEXT_SCALE))

    def trunk(self, modality: str) -> nn.Module:
        trunk = self._modules.get(modality)
        if trunk is None:
            raise VltError(f"this ImageBind has no {modality!r} trunk; {nearest(modality, self._modules)}")
        return trunk

    def embed(self, inputs: Tensor, modality: str) -> Float[Tensor, "clip segment joint"]:
        """Each segment's embedding: audio [clip, segment, 1, mel, time]; vision [clip, segment, 3, (2,) height, width].

        Audio embeddings have length 20, vision embeddings length 1: Video-LLaMA's audio branch is trained on the
        latter and used on the former.
        """
        flat = self.trunk(modality)(inputs.flatten(0, 1))
        return flat.unflatten(0, inputs.shape[:2])

    def joint(self, inputs: Tensor, modality: str) -> Float[Tensor, "clip joint"]:
        """ImageBind's own embedding of whole clips: the mean over segments, not normalised again. Vision also takes
        stills [clip, 3, height, width], and text [clip, token] ids."""
        whole = modality == "text" or (modality == "vision" and inputs.ndim == 4)
        if whole:
            return self.trunk(modality)(inputs)
        return reduce(self.embed(inputs, modality), "clip segment joint -> clip joint", "mean")
