"""What the paper takes as given, made in small: eyes, and the image Q-Former. (ImageBind is in `binding`, the language
model in `reading`.)

Each task is a module whose `forward` takes a batch and gives its loss, and holds the parts of the model that learn.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from einops import reduce
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vlt.inputs import video
from vlt.model.video_llama import VideoLlama
from vlt.train import world
from vlt.train.world import COLOURS, SHAPES, Scene

SIDE = 64  # pixels, of the box's eyes
PATCH = 8
VISIBLE = 0.15  # share of a patch that a thing must cover for its shape and colour to be asked of it


def compressed(pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One time in two, what a codec leaves of a picture [height, width, 3] uint8."""
    if draw.random() < 0.5:
        return pictures
    buffer = io.BytesIO()
    Image.fromarray(pictures).save(buffer, "JPEG", quality=int(draw.integers(50, 96)))
    return np.array(Image.open(buffer))


class Pictures(torch.utils.data.Dataset):
    """Single pictures of the world, and what is where in them.

    An item: picture [3, side, side] float32, normalised; cover [patch] float32, the share that a thing covers; shape,
    colour [patch] int64, of the thing that covers it; offset [patch, 2] float32, from the patch's middle to the thing's,
    in sides; there [shape] bool, hue [shape] int64, place [shape, 2] float32: for every shape, whether it is to be seen, its
    colour, its middle (row, column) in sides.
    """

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng([self.seed, index, 5])
        made = world.scene(self.seed * 1_000_000 + index, n_things=int(draw.choice(3, p=[0.05, 0.4, 0.55])))
        second = float(draw.uniform(0, world.SECONDS))
        picture = compressed(made.frames([second], SIDE)[0], draw)
        return {"picture": video.normalise(picture[None])[0].numpy(), **_per_patch(made, second), **_per_shape(made, second)}


def _per_patch(made: Scene, second: float) -> dict[str, np.ndarray]:
    n = SIDE // PATCH
    middle = (np.mgrid[:n, :n].reshape(2, -1).T + 0.5) / n
    out: dict[str, np.ndarray] = {
        "cover": np.zeros(n * n, np.float32),
        "shape": np.zeros(n * n, np.int64),
        "colour": np.zeros(n * n, np.int64),
        "offset": np.zeros((n * n, 2), np.float32),
    }
    masks = made.masks([second], SIDE)[0]
    for thing, mask in zip(made.things, masks, strict=True):
        share = reduce(mask.astype(np.float32), "(r p) (c q) -> (r c)", "mean", p=PATCH, q=PATCH)
        mine = share > out["cover"]
        x, y = thing.at(second)
        out["shape"][mine] = SHAPES.index(thing.shape)
        out["colour"][mine] = COLOURS.index(thing.colour)
        out["offset"][mine] = np.array([y, x], np.float32) - middle[mine]
        out["cover"] = np.maximum(out["cover"], share)
    return out


def _per_shape(made: Scene, second: float) -> dict[str, np.ndarray]:
    there, hue = np.zeros(len(SHAPES), bool), np.zeros(len(SHAPES), np.int64)
    place = np.zeros((len(SHAPES), 2), np.float32)
    for thing in made.things:
        i, (x, y) = SHAPES.index(thing.shape), thing.at(second)
        there[i], hue[i], place[i] = True, COLOURS.index(thing.colour), (y, x)
    return {"there": there, "hue": hue, "place": place}


class PatchTask(nn.Module):
    """Of every patch: is there a thing, of which shape and colour, and where is its middle? Dense, because an eye that
    is told only what is somewhere in the picture stands still for thousands of steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1 + len(SHAPES) + len(COLOURS) + 2)

    def forward(self, patches: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """patches: [picture, patch, width], without the class token."""
        cover, shape, colour, offset = self.head(patches).split([1, len(SHAPES), len(COLOURS), 2], dim=-1)
        seen = batch["cover"] > VISIBLE
        loss = 3 * functional.binary_cross_entropy_with_logits(cover[..., 0], batch["cover"])
        loss = loss + functional.cross_entropy(shape[seen], batch["shape"][seen])
        loss = loss + 0.5 * functional.cross_entropy(colour[seen], batch["colour"][seen])
        return loss + 4 * functional.l1_loss(offset[seen], batch["offset"][seen])


class Eyes(nn.Module):
    """The ViT, and ImageBind's own eye, learn to see the same pictures."""

    def __init__(self, model: VideoLlama) -> None:
        super().__init__()
        self.vision_model, self.bound = model.vision_model, model.imagebind.trunk("vision")
        self.task = PatchTask(model.config.vision_config.hidden_size)
        self.bound_task = PatchTask(model.config.imagebind_config.vision.hidden_size)
        self.requires_grad_(True)

    def forward(self, picture: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        loss = self.task(self.vision_model(picture).last_hidden_state[:, 1:], batch)
        x = self.bound.tokens(picture)
        for block in self.bound.blocks:
            x = block(x)
        return {"loss": loss + self.bound_task(self.bound.head_norm(x)[:, 1:], batch)}


class Slots(nn.Module):
    """The image Q-Former learns to gather: its first five queries answer for one shape each - is it there, in which
    colour, and where. The other three are free."""

    def __init__(self, model: VideoLlama) -> None:
        super().__init__()
        self.image_qformer, self.image_query_tokens = model.image_qformer, model.image_query_tokens
        self.head = nn.Linear(model.config.image_qformer_config.hidden_size, 1 + len(COLOURS) + 2)
        self.requires_grad_(True)

    def forward(self, patches: Tensor, there: Tensor, hue: Tensor, place: Tensor) -> dict[str, Tensor]:
        """patches: [picture, patch, width], cached from the frozen ViT."""
        queries = self.image_query_tokens.expand(len(patches), -1, -1)
        seen = self.image_qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        present, colour, where = self.head(seen[:, : len(SHAPES)]).split([1, len(COLOURS), 2], dim=-1)
        loss = functional.binary_cross_entropy_with_logits(present[..., 0], there.float())
        loss = loss + 0.5 * functional.cross_entropy(colour[there], hue[there])
        return {"loss": loss + 10 * functional.l1_loss(where[there], place[there])}


class SlotLessons(torch.utils.data.Dataset):
    """Pictures as the frozen ViT sees them, kept in half precision; drawn from again and again. For `Slots`."""

    def __init__(self, model: VideoLlama, pictures: Pictures, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        kept: dict[str, list[Tensor]] = {"patches": [], "there": [], "hue": [], "place": []}
        for batch in tqdm(DataLoader(pictures, batch_size=100), desc="looking at pictures", mininterval=2):
            with torch.no_grad():
                batch["patches"] = model.vision_model(batch["picture"].to(model.device)).last_hidden_state.half().cpu()
            for name, values in kept.items():
                values.append(batch[name])
        self.kept = {name: torch.cat(values) for name, values in kept.items()}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        i = int(np.random.default_rng([self.seed, index, 14]).integers(len(self.kept["patches"])))
        return {name: values[i].float() if name == "patches" else values[i] for name, values in self.kept.items()}
