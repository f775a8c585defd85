"""One edit, one value: which numbers are meant, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.inputs import audio
from vlt.probe.attention import unwatched
from vlt.probe.axes import Axis
from vlt.probe.edits import Edit

Selection = list[np.ndarray | None]  # for each axis the places, or None for all


def select(axes: Sequence[Axis], where: Mapping[str, Any], what: str) -> Selection:
    """The places that `where` names on these axes. A key is an axis, or a coordinate of one (patch_row on patch)."""
    out: Selection = [None] * len(axes)
    for key, index in where.items():
        for i, axis in enumerate(axes):
            if key == axis.name:
                found = axis.find(index)
            elif key in axis.coordinates:
                found = _by_coordinate(axis, key, index)
            else:
                continue
            before = out[i]
            out[i] = found if before is None else before[np.isin(before, found)]
            if not len(found if before is None else out[i]):  # type: ignore[arg-type]
                raise VltError(f"{what}: {dict(where)} names no place on {axis.name!r}")
            break
        else:
            if reason := next((a.elsewhere[key] for a in axes if key in a.elsewhere), ""):
                raise VltError(f"{what} has no axis {key!r}: {reason}")
            known = [a.name for a in axes] + [c for a in axes for c in a.coordinates]
            raise VltError(f"{what} has no axis {key!r}; {nearest(key, known)}; its axes are {', '.join(a.name for a in axes)}")
    return out


def _by_coordinate(axis: Axis, key: str, index: Any) -> np.ndarray:
    values = axis.coordinates[key]
    if values.dtype.kind in "OU":
        return _by_text(axis, key, index)
    if isinstance(index, str) and ":" not in index:
        return axis.find(index)
    if isinstance(index, str):
        start, _, stop = index.partition(":")
        try:
            low, high = float(start or 0), float(stop) if stop else np.inf
        except ValueError as error:
            raise VltError(f"{key} {index!r} is not understood; say a number, a list, or a range such as '2:5'") from error
        found = np.flatnonzero((values >= low) & (values < high))
    else:
        if not isinstance(index, int | float | list | tuple):
            raise VltError(f"{key} {index!r} is not understood; say a number, a list, or a range such as '2:5'")
        wanted = [index] if isinstance(index, int | float) else list(index)
        if lacking := [w for w in wanted if not (values == w).any()]:
            raise VltError(
                f"{key} {lacking[0]!r} was asked for; on {axis.name!r} it is {np.nanmin(values)} to {np.nanmax(values)}"
            )
        found = np.flatnonzero(np.isin(values, wanted))
    if not len(found):
        raise VltError(f"{key} {index!r} names no place; on {axis.name!r} it is {np.nanmin(values)} to {np.nanmax(values)}")
    return found


def _by_text(axis: Axis, key: str, index: Any) -> np.ndarray:
    """Texts, never phrases: word="answer" is a word. White space around them is passed over."""
    own = [str(value).strip() for value in axis.coordinates[key]]
    wanted = [index] if isinstance(index, str) else index
    if not isinstance(wanted, list | tuple) or not wanted or not all(isinstance(w, str) and w.strip() for w in wanted):
        raise VltError(f"{key} {index!r} is not understood; say a text, or a list of them")
    if lacking := [w for w in wanted if w.strip() not in own]:
        raise VltError(f"{key} {lacking[0]!r} is not there; {nearest(lacking[0], sorted(set(filter(None, own))))}")
    return np.flatnonzero(np.isin(own, [w.strip() for w in wanted]))


def take(value: Tensor, selection: Selection) -> Tensor:
    for axis, places in enumerate(selection):
        if places is not None:
            value = value.index_select(axis, torch.as_tensor(places, device=value.device))
    return value


def put(value: Tensor, selection: Selection, new: Tensor) -> Tensor:
    """A copy of `value` in which the selected numbers are the new ones."""
    named = [axis for axis, places in enumerate(selection) if places is not None]
    if not named:
        return new
    out = value.clone()
    if len(named) == 1:
        places = selection[named[0]]
        return out.index_copy_(named[0], torch.as_tensor(places, device=value.device), new)
    each = [np.arange(value.shape[i]) if p is None else p for i, p in enumerate(selection)]
    out[tuple(torch.as_tensor(p, device=value.device) for p in np.ix_(*each))] = new
    return out


Sourced = Callable[[int], Tensor]  # of the number of a source -> its numbers at the same places


def changed(edit: Edit, value: Tensor, selection: Selection, sourced: Sourced, run: Any, at: str) -> Tensor:
    """What the edit makes of a value without its clip axis. run: the `Trace` that is edited; at: the stage or place."""
    old = take(value, selection)
    new = _noise(edit, old, at) if edit.kind == "noise" else _CHANGES[edit.kind](edit, old, sourced, run)
    if not isinstance(new, Tensor):
        raise VltError(f"{edit}: gave a {type(new).__name__}; expected a tensor {list(old.shape)}, {old.dtype}")
    if (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
        raise VltError(
            f"{edit}: gave {list(new.shape)}, {new.dtype}, on {new.device}; "
            f"expected {list(old.shape)}, {old.dtype}, on {old.device}"
        )
    if not new.isfinite().all():
        raise VltError(f"{edit}: gave numbers that are not finite (nan or infinity)")
    return put(value, selection, new)


def _noise(edit: Edit, old: Tensor, at: str) -> Tensor:
    """The draw hangs on the place's name too: an edit of several places adds to each its own."""
    seed = np.random.SeedSequence([edit.options["seed"], *at.encode()]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(seed[0] >> 1))
    drawn = torch.randn(old.shape, generator=generator).to(old)
    deviation = old.float().std(correction=0)
    if not deviation:
        raise VltError(f"{edit}: all these numbers are equal; noise is measured by their deviation")
    return old + drawn * (edit.options["size"] * deviation).to(old)


def _mean(edit: Edit, old: Tensor, sourced: Sourced, run: Any) -> Tensor:
    found = [sourced(i).to(old) for i in range(len(edit.sources))]
    if other := next((f"{list(f.shape)} of {s}" for f, s in zip(found, edit.sources, strict=True) if f.shape != old.shape), ""):
        raise VltError(f"{edit}: a mean is over values of one shape; {list(old.shape)} is here, and {other}")
    return torch.stack(found).mean(dim=0)


def _resample(edit: Edit, old: Tensor, sourced: Sourced, run: Any) -> Tensor:
    return sourced(int(np.random.default_rng(edit.options["seed"]).integers(len(edit.sources)))).to(old)


def _custom(edit: Edit, old: Tensor, sourced: Sourced, run: Any) -> Tensor:
    with unwatched():
        return edit.options["function"](old.clone())  # it may work in place


def _mute(edit: Edit, old: Tensor, sourced: Sourced, run: Any) -> Tensor:
    if old.shape[1:] != run.given["spectrograms"].shape[2:]:
        raise VltError(f"{edit}: whole segments are muted; scale or zero parts of a spectrogram")
    return silence(old.shape[-1]).to(old).expand_as(old).clone()


@lru_cache(maxsize=4)
def silence(n_times: int) -> Tensor:
    """The spectrogram of two seconds of digital silence [1, 1, mel, time]."""
    samples = audio.SEGMENT_SECONDS * audio.SAMPLE_RATE
    return audio.spectrograms_of_waveform(
        torch.zeros(1, samples), audio.SAMPLE_RATE, audio.segment_bounds(float(audio.SEGMENT_SECONDS), 1), n_times
    )


def _shift(edit: Edit, old: Tensor, sourced: Sourced, run: Any) -> Tensor:
    clip, delay = run.clip, edit.options["seconds"]
    if not torch.equal(old, run.given["spectrograms"][0].to(old)):
        raise VltError(f"{edit}: moves the sound as it is in the file; put it before other edits of the sound")
    return audio.spectrograms_of_file(clip.path, clip.sound, run.labels.bounds, old.shape[-1], delay).to(old)


_CHANGES: dict[str, Callable[[Edit, Tensor, Sourced, Any], Any]] = {
    "zero": lambda edit, old, sourced, run: torch.zeros_like(old),
    "blank": lambda edit, old, sourced, run: torch.zeros_like(old),
    "scale": lambda edit, old, sourced, run: old * edit.options["factor"],
    "swap": lambda edit, old, sourced, run: sourced(0).to(old),
    "mean": _mean,
    "resample": _resample,
    "custom": _custom,
    "mute": _mute,
    "shift": _shift,
}


def order(edit: Edit, size: int) -> np.ndarray:
    """Of a reorder edit: which place each place takes its numbers from."""
    how = edit.options["order"]
    if size < 2:
        raise VltError(f"{edit}: there is only {size} on this axis; its order cannot change")
    if how == "reverse":
        return np.arange(size)[::-1].copy()
    if how == "shuffle":
        draw = np.random.default_rng(edit.options.get("seed", 0))
        while True:
            drawn = draw.permutation(size)
            if not (drawn == np.arange(size)).all():
                return drawn
    if isinstance(how, str) or not 0 <= how < size:
        raise VltError(f"{edit}: order is 'shuffle', 'reverse', or a place from 0 to {size - 1}")
    return np.full(size, how)


def reordered(edit: Edit, value: Tensor, axes: Sequence[Axis]) -> Tensor:
    names = [axis.name for axis in axes]
    axis = edit.options["axis"]
    if axis not in names:
        raise VltError(f"{edit}: {edit.at!r} has no axis {axis!r}; {nearest(axis, names)}")
    at = names.index(axis)
    return value.index_select(at, torch.as_tensor(order(edit, axes[at].size), device=value.device))
