"""The axes of one run, and labelled arrays."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError
from vlt.inputs import audio
from vlt.inputs.clip import Clip
from vlt.model import stages
from vlt.model.config import VideoLlamaConfig
from vlt.probe import apply, axes
from vlt.probe.attention import Keep, Watcher
from vlt.probe.axes import Axis
from vlt.probe.sites import Site

_NAMES = {"frame x image query": "frame_token"}


class Labels:
    """Knows what every axis of a run is, but for the language model's tokens.

    clip: what was looked at and listened to; n_frames, bounds: in how many frames, and which segments (start, end).
    """

    def __init__(
        self, config: VideoLlamaConfig, clip: Clip, n_frames: int, bounds: Sequence[tuple[Fraction, Fraction]]
    ) -> None:
        self.config, self.clip, self.n_frames, self.bounds = config, clip, n_frames, bounds
        self._known: dict[str, Axis] = {}

    def of_stage(self, name: str) -> list[Axis]:
        """A stage's axes but the clip's."""
        sizes = stages.axis_sizes(self.config)
        return [self._axis(_python(axis), sizes.get((name, axis)), name) for axis in stages.stage(name).axes[1:]]

    def of_site(self, site: Site) -> list[Axis]:
        return [self._axis(n, {"head": site.n_heads, site.width: site.n_width}.get(n), site.name) for n in site.axes]

    def seen(self, site: Site) -> tuple[Axis, Axis]:
        """What looks, and what is looked at, of an attention."""
        return self._axis(site.rows, None, site.name), self._axis(site.columns, None, site.name)

    def _axis(self, name: str, size: object, at: str) -> Axis:
        if name not in self._known and (axis := self._told(name)) is not None:
            self._known[name] = axis
        if name in self._known:
            return self._known[name]
        if not isinstance(size, int):
            raise VltError(f"{at!r}: the size of its axis {name!r} is not known before it is computed")
        return axes.plain(name, size)

    def _told(self, name: str) -> Axis | None:
        config = self.config
        if name == "image_query":
            return axes.plain(name, config.num_image_queries)
        if name == "video_query":
            return axes.plain(name, config.num_video_queries, axes.mixed("a video query", "video"))
        if name == "audio_query":
            return axes.plain(name, config.num_audio_queries, axes.mixed("an audio query", "audio"))
        if name == "token":
            return axes.plain(name, 0)  # a run knows its own
        if name == "frame":
            if self.clip.n_frames == 1:
                return axes.frame([0], [0.0])
            numbers = self.clip.frame_indices(self.n_frames)
            return axes.frame(numbers.tolist(), self.clip.frame_times[numbers].tolist())
        if name == "frame_token":
            return axes.frame_token(self._axis("frame", None, name), config.num_image_queries)
        if name == "patch":
            side = config.vision_config.image_size // config.vision_config.patch_size
            return axes.patch(side, side)
        if name == "segment":
            late = self.clip.sound.start  # times are the clip's, as those of frames
            return axes.segment([(float(start) + late, float(end) + late) for start, end in self.bounds])
        return self._of_sound(name)

    def _of_sound(self, name: str) -> Axis | None:
        if not self.config.has_ears or (trunk := self.config.imagebind_config.audio) is None:
            return None
        hz, seconds = audio.mel_frequencies(), audio.column_times(trunk.num_times)
        hz = hz if len(hz) == trunk.num_mels else np.full(trunk.num_mels, np.nan)
        if name in ("mel", "time"):
            values, unit = (hz, "hz") if name == "mel" else (seconds, "segment_seconds")
            return Axis(name, len(values), {unit: values})
        if name in ("sound_patch", "sound_patch_seen"):
            return axes.sound_patch(name, hz, seconds, trunk.kernel_size, trunk.stride, nothing=name != "sound_patch")
        return None


def _python(axis: str) -> str:
    """The name of a stage's axis, as labelled arrays have it."""
    return _NAMES.get(axis, axis.replace(" ", "_").replace("-", "").lower())


def labelled(
    value: Tensor, of: Sequence[Axis], name: str, places: Sequence[np.ndarray | None] | None = None, attrs: dict | None = None
) -> xr.DataArray:
    """A tensor as float32 numbers on the CPU, its axes named. places: those taken of each axis. Where two axes (what looks,
    and what is looked at) have a name or a coordinate in common, the second's ends in "_seen"."""
    dims: list[str] = []
    coords: dict[str, tuple[str, np.ndarray]] = {}
    for axis, taken in zip(of, places or [None] * len(of), strict=True):
        dim = _free(axis.name, dims)
        dims.append(dim)
        for key, known in axis.coords(taken).items():
            coords[dim if key == axis.name else _free(key, coords)] = (dim, known)
    numbers = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    return xr.DataArray(numbers.numpy(), dims=dims, coords=coords, name=name, attrs=attrs or {})


def _free(name: str, taken: Container[str]) -> str:
    return f"{name}_seen" if name in taken else name


class Heard(Watcher):
    """Keeps what a site gives, without the clip axis: of an attention, what its heads say. of: its axes. where: which of it
    is kept, as for edits."""

    value: Tensor

    def __init__(self, site: Site, of: Sequence[Axis], where: Mapping[str, Any]) -> None:
        self.site, self.of, self.places = site, of, apply.select(of, where, repr(site.name))

    def say(self, mixed: Tensor) -> Tensor:
        self.hear(mixed)
        return mixed

    def hear(self, value: Tensor) -> None:
        whole = self.site.inner or self.site.kind == "table"
        self.value = apply.take(value if whole else value[0], self.places)

    def array(self) -> xr.DataArray:
        return labelled(self.value, self.of, self.site.name, self.places)


class Wanted:
    """What is asked of one attention. n_bytes: what will be kept. keep: stands at the attention while it runs."""

    def __init__(self, run: Any, site: Site, rows: Any, columns: Any, head: Any, mean: bool) -> None:
        self.site, self.mean = site, mean
        row_axis, column_axis = (run.tokens if a.name == "token" else a for a in run.labels.seen(site))
        inner = [axis for axis in run.axes_of(site.name) if axis.name in site.inner]
        heads = axes.plain("head", site.n_heads)
        at_rows, at_heads = row_axis.find("all" if rows is None else rows), heads.find("all" if head is None else head)
        self.groups = list(columns) if isinstance(columns, list | tuple) and any(isinstance(c, str) for c in columns) else None
        each = [column_axis.find(c) for c in self.groups or []]
        at_columns = column_axis.find("all" if columns is None else columns) if self.groups is None else None
        single = at_columns is not None and columns is not None
        sets = [torch.as_tensor([c]) for c in at_columns] if single else [torch.as_tensor(e) for e in each]  # type: ignore[union-attr]
        only_rows = None if rows is None else torch.as_tensor(at_rows)
        only_heads = None if head is None else torch.as_tensor(at_heads)
        self.keep = Keep(only_rows, only_heads, sets or None, mean)
        self.axes = [*inner, *([] if mean else [heads]), row_axis, column_axis]
        self.places = [*[None] * len(inner), *([] if mean else [at_heads]), at_rows, at_columns]
        n_columns = len(self.groups) if self.groups is not None else len(at_columns)  # type: ignore[arg-type]
        n_heads = 1 if mean else len(at_heads)
        self.n_bytes = 4 * math.prod(axis.size for axis in inner) * n_heads * len(at_rows) * n_columns

    def array(self) -> xr.DataArray:
        kept = self.keep.kept
        assert kept is not None
        value = kept[:, 0] if self.mean else kept
        value = value if self.site.inner else value[0]
        attrs = {"long_name": "attention probability", "of": self.site.name}
        if self.groups is None:
            return labelled(value, self.axes, self.site.name, self.places, attrs)
        out = labelled(
            value, [*self.axes[:-1], axes.plain("seen", len(self.groups))], self.site.name, [*self.places[:-1], None]
        )
        return out.assign_coords(seen=[str(g) for g in self.groups]).assign_attrs(attrs)
