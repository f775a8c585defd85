"""Where an answer's word comes from: through the language model, the soft tokens, the Q-Formers and the encoders, back to
the patches of the frames and of the spectrograms.

Two methods, each carried through one part after the other and composed:

- "rollout" (Abnar and Zuidema, arXiv 2005.00928): attention alone. Of what a row holds after a layer, half is its own
  and half is what its heads, on average, looked at.
- "relevance" (Chefer, Gur and Wolf, arXiv 2103.15679): attention weighted by its gradient. With A the probabilities and
  dA the gradient of the word's logit, one layer adds mean over heads of (dA * A)+.

Both are of the unedited model: nothing in it is replaced. Edits of the run stay in force; those that put other numbers in
the place of what attention carries are refused, as heat would flow through them to where the numbers do not come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError, check_type, nearest
from vlt.probe import apply, language
from vlt.probe.attention import Call, Keep, Tap, Watcher
from vlt.probe.axes import Axis
from vlt.probe.engine import Applied
from vlt.probe.labels import labelled
from vlt.probe.sites import Site
from vlt.probe.trace import LIMIT, Trace

METHODS = ("relevance", "rollout")
REPLACE = ("zero", "mean", "swap", "resample", "reorder", "custom")
# Parts on the way of each branch, from the soft tokens back, with the axis that each ends at.
WAYS = {"video": ("video_qformer", "image_qformer", "vision_model"), "audio": ("audio_qformer", "imagebind")}


class Flow:
    """What rows hold of what a part was given, layer by layer. own [b, row, row]: of the rows as they came in (from the
    identity on). seen [b, row, column]: of what cross-attention looks at (from 0 on)."""

    def __init__(self) -> None:
        self.own: Tensor | None = None
        self.seen: Tensor | None = None

    def rolled(self, p: Tensor, cross: bool) -> None:
        """A layer of rollout. p: mean over heads [b, row, column]."""
        if cross:
            own = self._own(p)
            self.seen = 0.5 * p + (0 if self.seen is None else 0.5 * self.seen)
            self.own = 0.5 * own
            return
        own = self._own(p)
        step = 0.5 * p[..., : p.shape[1]] + 0.5 * torch.eye(p.shape[1], device=p.device)  # a key that is nobody's is lost
        self.own = step @ own
        self.seen = None if self.seen is None else step @ self.seen

    def related(self, a: Tensor, cross: bool) -> None:
        """A layer of relevance. a: mean over heads of (dA * A)+ [b, row, column]."""
        own = self._own(a)
        if cross:
            more = _shares(own).transpose(1, 2) @ a  # equation 10, with what is seen related to itself alone
            self.seen = more if self.seen is None else self.seen + more
            return
        a = a[..., : a.shape[1]]
        self.own = own + a @ own  # equation 6
        self.seen = None if self.seen is None else self.seen + a @ self.seen

    def _own(self, like: Tensor) -> Tensor:
        return torch.eye(like.shape[1], device=like.device).expand(len(like), -1, -1) if self.own is None else self.own


def _shares(own: Tensor) -> Tensor:
    """Equations 8 and 9: what was added to the identity, each row to sum to one (rows of nothing stay nothing)."""
    one = torch.eye(own.shape[1], device=own.device)
    added = own - one
    return added / added.sum(-1, keepdim=True).clamp(min=torch.finfo(added.dtype).tiny) + one


class Rolling(Watcher):
    """Stands at every attention of a part and carries rollout on inside the forward: no layer's probabilities are kept."""

    def __init__(self, flow: Flow, cross: bool) -> None:
        self.flow, self.cross = flow, cross

    def see(self, call: Call) -> None:
        keep = Keep(mean=True)  # some rows at a time
        keep.see(call)
        assert keep.kept is not None
        self.flow.rolled(keep.kept[:, 0], self.cross)


def rollout(run: Trace, part: str, limit: int = LIMIT) -> xr.DataArray:
    """Attention rollout through all layers of a part ("vision_model", "video_qformer", "language_model", ...): what each
    row holds of each of the part's own first rows or, for Q-Formers, of what they look at [(frame or segment,) row,
    column]. Rows sum to one, but for what goes to ImageBind's extra key, and for a Q-Former's share of its own queries."""
    flow = flows(run, [part], "rollout", limit=limit)[part]
    site = next(s for s in run.sites.values() if s.part == part and s.columns)
    return _labelled(run, site, flow, f"rollout of {part}")


def relevance(run: Trace, part: str, word: int | str = 0, limit: int = LIMIT) -> xr.DataArray:
    """Chefer's relevance through all layers of a part, for one word of the answer; axes as of `rollout`."""
    flow = flows(run, [part], "relevance", word, limit)[part]
    site = next(s for s in run.sites.values() if s.part == part and s.columns)
    return _labelled(run, site, flow, f"relevance of {part}")


def _labelled(run: Trace, site: Site, flow: Flow, name: str) -> xr.DataArray:
    own, seen = flow.own, flow.seen
    crossing = next((s for s in run.sites.values() if s.part == site.part and s.kind == "cross"), None)
    value = own if crossing is None else seen
    assert value is not None
    last = crossing or dataclasses.replace(site, columns=site.rows)
    inner = [axis for axis in run.axes_of(site.name) if axis.name in site.inner]
    rows, columns = (run.tokens if axis.name == "token" else axis for axis in run.labels.seen(last))
    return labelled(value if site.inner else value[0], [*inner, rows, columns], name)


def flows(run: Trace, parts: Sequence[str], method: str, word: int | str = 0, limit: int = LIMIT) -> dict[str, Flow]:
    """What each part's rows hold at its end."""
    if method not in METHODS:
        raise VltError(f"no method {method!r}; {nearest(method, METHODS)}")
    at = {part: [s for s in run.sites.values() if s.part == part and s.columns] for part in parts}
    if lacking := [part for part, found in at.items() if not found]:
        raise VltError(f"no part {lacking[0]!r}; {nearest(lacking[0], {s.part for s in run.sites.values() if s.columns})}")
    check_carried(run, parts)
    found = {part: Flow() for part in parts}
    if method == "rollout":
        size = sum(2 * 4 * max(_count(run, s) // s.n_heads for s in at[part]) for part in parts)
        if size > limit:
            raise VltError(
                f"rollout keeps {size / 2**20:,.1f} MiB, the limit is {limit / 2**20:,.1f} MiB; take fewer parts, or limit="
            )
        run.observe({s.name: Rolling(found[part], s.kind == "cross") for part in parts for s in at[part]})
        return found
    for site, a in _weighted(run, [s for part in parts for s in at[part]], word, limit):
        found[site.part].related(a, site.kind == "cross")
    return found


def check_carried(run: Trace, parts: Sequence[str] = ("language_model", *WAYS["video"], *WAYS["audio"])) -> None:
    """Refuses edits after which a place does not hold what attention brought there. parts: that are followed through."""
    for applied in run.applied:
        edit = applied.edit
        inside = any(site.part in parts and site.kind != "mlp" for site in applied.sites)  # past an MLP goes what was brought
        between = len(parts) > 1 and _between(run, applied)
        if (inside or between) and (edit.kind in REPLACE or edit.options.get("factor") == 0):
            raise VltError(
                f"{edit}: puts other numbers in the place of what attention brought there, so that it cannot be followed back; "
                "take a run without it, or vlt.attribute with a method that looks at the score"
            )


def _between(run: Trace, applied: Applied) -> bool:
    """Does an edit stand where one part gives to the next? Words are given by none."""
    if applied.stage != "prefix":
        return applied.stage not in ("", "prompt", "frames", "spectrograms")
    places = apply.select([run.asked, run.labels.of_stage("prefix")[1]], applied.edit.where, "'prefix'")[0]
    soft = run.asked.coordinates["query"] >= 0
    return bool(soft.any() if places is None else soft[places].any())


def _weighted(run: Trace, wanted: Sequence[Site], word: int | str, limit: int) -> list[tuple[Site, Tensor]]:
    """(site, mean over heads of (dA * A)+ [b, row, column]) in the order of the data, from one pass and its gradient."""
    at = run.word(word)
    size = sum(2 * 4 * _count(run, site) for site in wanted)
    if size > limit:
        raise VltError(
            f"relevance keeps {size / 2**20:,.0f} MiB of attention and its gradient, the limit is {limit / 2**20:,.0f} MiB; "
            "take method='rollout', which keeps one matrix, fewer parts, or give limit="
        )
    keeps = {site.name: Keep(graph=True) for site in wanted}
    with torch.enable_grad():
        again = run.again({name: value.detach().clone().requires_grad_() for name, value in run.given.items()})
        with Tap(run.model, {site.module: [keeps[site.name]] for site in wanted}):
            logits = language.read([again.row])[0]
        kept: list[Any] = [keeps[site.name].kept for site in wanted]
        slopes = torch.autograd.grad(logits[run.row.begin - 1 + at, run.row.ids[at]].float(), kept, allow_unused=True)
    out = []
    for site, p, slope in zip(wanted, kept, slopes, strict=True):
        weighted = torch.zeros_like(p) if slope is None else (slope * p).clamp(min=0)
        out.append((site, weighted.mean(1).detach()))
    return out


def _count(run: Trace, site: Site) -> int:
    rows, columns = (run.tokens if axis.name == "token" else axis for axis in run.labels.seen(site))
    inner = 1
    for axis in run.axes_of(site.name):
        inner *= axis.size if axis.name in site.inner else 1
    return inner * site.n_heads * rows.size * columns.size


def path(run: Trace, word: int | str = 0, method: str = "relevance", limit: int = LIMIT) -> xr.Dataset:
    """From a word of the answer back to what was seen and heard.

    word: its number among the answer's tokens, or its text. Let w [token] be what the place that predicts the word holds
    of every token of the prompt, by `method`. Its soft tokens' part is carried on: w[video] @ (what the video queries
    hold of the frame tokens) = heat on frame tokens; that @ (what each frame's image queries hold of its patches), frame
    by frame; that @ (what patches hold of the first layer's patches). For sound: audio queries -> segments -> the row of
    ImageBind's class token -> patches of mel and time.

    Returns a Dataset: `tokens` [token]; `frame_tokens` [frame, image_query] and `video` [frame, patch_row,
    patch_column]; `segments` [segment] and `audio` [segment, mel_row, time_column]; of the branches that the prompt
    has. Heat is not scaled. By "rollout", that of a branch sums to its share of w or less (what is lost stays in queries,
    class tokens and extra keys). By "relevance" sums are of no meaning: every part multiplies by gradients of its own, so that
    heat can be compared within one array, and not between arrays. What it is worth is a question for `vlt.faithfulness`:
    heat is no proof of a cause. Raises `VltError` for a run with edits that put other numbers in the place of what attention
    brought there.
    """
    check_type(run, Trace, "the run of vlt.path(run, word)")
    branches = [b for b in ("video", "audio") if b in run.prompt.branches]
    parts = ["language_model", *(part for branch in branches for part in WAYS[branch])]
    found = flows(run, parts, method, word, limit)
    at = run.word(word)
    own = found["language_model"].own
    assert own is not None
    place = run.row.begin - 1 + at
    tokens = own[0, place].clone()
    if method == "relevance":
        tokens[place] -= 1  # the identity that relevance starts from is no relevance
    out = {"tokens": labelled(tokens, [run.tokens], "tokens")}
    for branch in branches:
        heat = tokens[torch.as_tensor(run.tokens.find(branch))]
        out |= _video(run, heat, found) if branch == "video" else _audio(run, heat, found)
    for array in out.values():
        array.attrs["long_name"] = f"{method} for {run.answer.tokens[at].strip()!r}"
    about = {"clip": run.clip.path.name, "word": run.answer.tokens[at], "token": place + 1, "method": method}
    return xr.Dataset(out, attrs=about)


def _video(run: Trace, heat: Tensor, found: dict[str, Flow]) -> dict[str, xr.DataArray]:
    seen, looked, patches = found["video_qformer"].seen, found["image_qformer"].seen, found["vision_model"].own
    assert seen is not None and looked is not None and patches is not None
    frames, queries = looked.shape[0], looked.shape[1]
    on_tokens = (heat @ seen[0]).view(frames, queries)
    on_patches = torch.einsum("fq,fqp,fpr->fr", on_tokens, looked, patches)[:, 1:]
    frame, query = run.axes_of("image_queries")[:2]
    side = int(on_patches.shape[1] ** 0.5)
    grid = on_patches.view(frames, side, side).detach().cpu().numpy()
    return {
        "frame_tokens": labelled(on_tokens, [frame, query], "frame_tokens"),
        "video": xr.DataArray(grid, dims=["frame", "patch_row", "patch_column"], coords=_of("frame", frame), name="video"),
    }


def _of(dim: str, axis: Axis) -> dict[str, Any]:
    return {key: (dim, value) for key, value in axis.coords().items()}


def _audio(run: Trace, heat: Tensor, found: dict[str, Flow]) -> dict[str, xr.DataArray]:
    seen, patches = found["audio_qformer"].seen, found["imagebind"].own
    assert seen is not None and patches is not None
    on_segments = heat @ seen[0]
    on_patches = (on_segments[:, None] * patches[:, 0])[:, 1:]  # the embedding is read at the class token
    segment = run.axes_of("segment_tokens")[0]
    places = run.axes_of("imagebind.0")[1].coordinates
    rows, columns = (int(places[k].max()) + 1 for k in ("patch_row", "patch_column"))
    hz = [places[k][1:].reshape(rows, columns)[:, 0] for k in ("hz_low", "hz_high")]
    coords: dict[str, Any] = _of("segment", segment) | {
        "hz_low": ("mel_row", hz[0]),
        "hz_high": ("mel_row", hz[1]),
        "segment_seconds": ("time_column", places["segment_seconds"][1:].reshape(rows, columns)[0]),
    }
    grid = on_patches.view(-1, rows, columns).detach().cpu().numpy()
    return {
        "segments": labelled(on_segments, [segment], "segments"),
        "audio": xr.DataArray(grid, dims=["segment", "mel_row", "time_column"], coords=coords, name="audio"),
    }
