"""The tap: one attention function, registered with transformers, through which every attention of a watched model goes.

While a `Tap` is open its model's modules call `attend` here, which answers as SDPA does; only where something watches
does it form the probabilities too, for the rows and heads that are asked for, and keeps them reduced as asked. The same
place cuts edges (`Cut`) and changes what heads say (`Change`). When the last tap on a model closes, nothing is left.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vlt.errors import VltError

NAME = "vlt"
KEPT = 2**18  # elements of a causal mask that is kept for the next layer
AT_ONCE = 2**26  # bytes of scores that are formed at a time where no gradient is asked for


def _hidden(places: Tensor, columns: int) -> Float[Tensor, "row column"]:
    """What is added to scores where rows may not look at what comes later: minus infinity there, else 0."""
    ahead = torch.arange(columns, device=places.device) > places[:, None]
    return torch.zeros(ahead.shape, device=places.device).masked_fill_(ahead, -torch.inf)


@lru_cache(maxsize=8)
def _ahead(rows: int, columns: int, device: torch.device) -> Float[Tensor, "row column"]:
    with torch.inference_mode(False):  # what is kept must serve gradients too
        return _hidden(torch.arange(rows, device=device), columns)


class Call:
    """One attention, as it happens. query [b, head, row, width], key and value [b, head, column, width].

    mask: what may be looked at, as `sdpa_mask` gives it (bool, or None). Raises `VltError` for a mask of numbers to add.
    """

    def __init__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float):
        if mask is not None and mask.dtype != torch.bool:
            raise VltError(f"an attention mask of a watched model is bool (True: may be looked at); got {mask.dtype}")
        groups = getattr(module, "num_key_value_groups", 1)
        self.query, self.key, self.value = query, repeat_kv(key, groups), repeat_kv(value, groups)
        self.mask, self.scaling = mask, scaling
        rows, columns = query.shape[2], key.shape[2]
        self.is_decoder = bool(getattr(module, "is_causal", True))
        self.causal = mask is None and rows > 1 and self.is_decoder
        self.first_row = columns - rows  # of the columns, where rows are the latest of them
        self.cuts = 0

    def allowed(self, rows: Tensor | slice = slice(None)) -> Bool[Tensor, "b|1 1 row column"] | None:
        """Which columns the rows may look at; None where all."""
        if self.mask is not None:
            return self.mask[:, :, rows]
        if not self.causal:
            return None
        places = torch.arange(self.query.shape[2], device=self.query.device)[rows]
        columns = torch.arange(self.key.shape[2], device=self.query.device)
        return (columns <= places[:, None])[None, None]  # of the rows alone: all of them would be tokens squared

    def probabilities(self, rows: Tensor | slice = slice(None), heads: Tensor | slice = slice(None)) -> Tensor:
        """softmax(query key^T * scaling + mask) [b, head, row, column], float32 whatever the model's dtype. Rows that
        may look at nothing (padding) are 0."""
        query, key = (self.query, self.key) if heads == slice(None) else (self.query[:, heads], self.key[:, heads])
        query = query if rows == slice(None) else query[:, :, rows]
        scores = query.float() @ key.float().transpose(-1, -2)
        if self.mask is None:
            if not self.causal:
                return (scores * self.scaling).softmax(dim=-1)
            n, m = self.query.shape[2], self.key.shape[2]
            places = rows if isinstance(rows, Tensor) else torch.arange(n, device=scores.device)[rows]
            bias = _ahead(n, m, scores.device) if rows == slice(None) and n * m <= KEPT else _hidden(places, m)
            return torch.add(bias, scores, alpha=self.scaling).softmax(dim=-1)
        scores = scores * self.scaling
        allowed = self.allowed(rows)
        assert allowed is not None
        scores = scores.masked_fill(~allowed, torch.finfo(torch.float32).min)
        return scores.softmax(dim=-1) * allowed.any(-1, keepdim=True)

    def cut(self, part: slice, edges: Bool[Tensor, "row column"]) -> tuple[int, bool]:
        """From now on these rows of a part of the batch do not look at these columns. Returns how many edges that cut,
        and whether a row is left with nothing to look at."""
        b, n, m = self.query.shape[0], self.query.shape[2], self.key.shape[2]
        allowed = self.allowed()
        if not self.cuts:
            every = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=edges.device)
            self.mask = (every if allowed is None else allowed).expand(b, 1, n, m).clone()
            self.causal = False
        self.cuts += 1
        assert self.mask is not None
        mask = self.mask[part]
        before = mask.clone()
        mask.masked_fill_(edges, False)
        blind = before.any(-1) & ~(before & ~edges).any(-1)
        return int((before & edges).sum()), bool(blind.any())

    def output(self) -> Float[Tensor, "b row head width"]:
        """As SDPA gives it, with the mask as it is now."""
        # key and value are repeated for grouped queries already: the module's count must not repeat them again
        mixed, _ = sdpa_attention_forward(
            _PLAIN, self.query, self.key, self.value, self.mask, scaling=self.scaling, is_causal=self.causal
        )
        return mixed


_PLAIN = nn.Module()


class Watcher:
    """What may stand at an attention; this one does nothing."""

    def mask(self, call: Call) -> None:
        """May change what is looked at."""

    def see(self, call: Call) -> None:
        """May read."""

    def say(self, mixed: Float[Tensor, "b row head width"]) -> Float[Tensor, "b row head width"]:
        """May change what the heads say."""
        return mixed


class Keep(Watcher):
    """Keeps probabilities [b, head, row, column], reduced inside the forward so that only what is kept takes memory.

    rows, heads: indices, by default all. groups: sets of columns, whose sums take the columns' place. mean: over the
    heads (which keeps an axis of length 1). graph: the attention's answer is formed from the kept probabilities, so that
    gradients reach them (not reduced; all rows and heads).
    """

    def __init__(
        self,
        rows: Tensor | None = None,
        heads: Tensor | None = None,
        groups: Sequence[Tensor] | None = None,
        mean: bool = False,
        graph: bool = False,
    ) -> None:
        self.rows, self.heads, self.groups, self.mean_heads, self.graph = rows, heads, groups, mean, graph
        self.kept: Tensor | None = None

    def see(self, call: Call) -> None:
        if self.graph:
            self.kept = call.probabilities()
            if torch.is_grad_enabled() and not self.kept.requires_grad:  # nothing before it does: queries, to begin with
                self.kept.requires_grad_()
            return
        device, heads = call.query.device, slice(None) if self.heads is None else self.heads.to(call.query.device)
        count = call.query.shape[2] if self.rows is None else len(self.rows)
        one = 4 * call.query.shape[0] * call.query[:, heads].shape[1] * call.key.shape[2]  # bytes of a row
        step = count if torch.is_grad_enabled() else max(AT_ONCE // one, 1)
        if self.rows is None and step >= count:
            self.kept = self._reduced(call.probabilities(slice(None), heads))
            return
        rows = torch.arange(count, device=device) if self.rows is None else self.rows.to(device)
        pieces = [self._reduced(call.probabilities(part, heads)) for part in rows.split(step)]
        self.kept = torch.cat(pieces, dim=2)

    def _reduced(self, p: Tensor) -> Tensor:
        if self.mean_heads:
            p = p.mean(dim=1, keepdim=True)
        if self.groups is not None:
            p = torch.stack([p[..., group.to(p.device)].sum(-1) for group in self.groups], dim=-1)
        return p


class Cut(Watcher):
    """In one part of a batch, some rows do not look at some columns.

    rows, columns: places, in decoding those of the longest row of the batch, so that they hold at every step. part: which
    of `parts` equal parts of the batch. blind: what is said where a row would be left with nothing to look at. fired: how
    many edges were cut.
    """

    def __init__(self, rows: Tensor, columns: Tensor, part: int, parts: int, blind: str) -> None:
        self.rows, self.columns, self.part, self.parts, self.blind, self.fired = rows, columns, part, parts, blind, 0

    def mask(self, call: Call) -> None:
        device, each = call.query.device, call.query.shape[0] // self.parts
        rows = torch.arange(call.query.shape[2], device=device) + call.first_row * call.is_decoder
        columns = torch.arange(call.key.shape[2], device=device)
        edges = torch.isin(rows, self.rows.to(device))[:, None] & torch.isin(columns, self.columns.to(device))
        if edges.any():
            count, blind = call.cut(slice(self.part * each, (self.part + 1) * each), edges)
            if blind:
                raise VltError(self.blind)
            self.fired += count


class Change(Watcher):
    """What the heads say is changed: change takes and gives [b, row, head, width]."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def say(self, mixed: Tensor) -> Tensor:
        return self.change(mixed)


_open: ContextVar[tuple[Tap, ...]] = ContextVar("vlt_taps", default=())
_lock = threading.Lock()
_users: Counter[int] = Counter()  # open taps on a configuration, by its id
_before: dict[int, tuple[PreTrainedConfig, str | None]] = {}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, with transformers' arguments."""
    watchers = [w for tap in _open.get() for w in tap.attentions.get(module, ())]
    if not watchers:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others)
    if dropout:
        raise VltError("a model is watched in evaluation mode: call model.eval() first")
    call = Call(module, query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
    for watcher in watchers:
        watcher.mask(call)
    for watcher in watchers:
        watcher.see(call)
    kept = next((w.kept for w in watchers if isinstance(w, Keep) and w.graph), None)
    if kept is not None:
        mixed = (kept.to(call.value.dtype) @ call.value).transpose(1, 2)
    elif call.mask is attention_mask:  # nothing was cut: the very call that would have been made
        mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    else:
        mixed = call.output()
    for watcher in watchers:
        mixed = watcher.say(mixed)
    return mixed, None


# Without a mask function of the same name transformers would silently drop the causal mask.
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Tap:
    """A context in which a model is watched. Only runs inside it, in the same thread, are seen.

    attentions: attention module -> its watchers. outputs: module -> functions of its output, in order; what one returns
    takes its place (None: it stays). inputs: module -> what is told its named arguments before it runs.
    """

    def __init__(
        self,
        model: nn.Module,
        attentions: Mapping[nn.Module, Sequence[Watcher]] | None = None,
        outputs: Mapping[nn.Module, Sequence[Callable[[Tensor], Tensor | None]]] | None = None,
        inputs: Mapping[nn.Module, Callable[[Mapping[str, Any]], None]] | None = None,
    ) -> None:
        self.model = model
        self.attentions = dict(attentions or {})
        self.outputs = dict(outputs or {})
        self.inputs = dict(inputs or {})

    def __enter__(self) -> Tap:
        self._handles = [m.register_forward_hook(self._hook(f)) for m, found in self.outputs.items() for f in found]
        self._handles += [m.register_forward_pre_hook(self._before(f), with_kwargs=True) for m, f in self.inputs.items()]
        if self.attentions:
            _switch_on(self.model)
        self._token = _open.set((*_open.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _open.reset(self._token)
        if self.attentions:
            _switch_off(self.model)
        for handle in self._handles:
            handle.remove()

    def _before(self, told: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, named: Mapping[str, Any]) -> None:
            if self in _open.get():
                told(named)

        return hook

    def _hook(self, change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if self not in _open.get():  # another thread's run
                return None
            new = change(output[0] if isinstance(output, tuple) else output)
            return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

        return hook


@contextmanager
def unwatched() -> Iterator[None]:
    """Runs inside this are not seen: for functions of a person's own, which may run the model."""
    token = _open.set(())
    try:
        yield
    finally:
        _open.reset(token)


def _configs(model: nn.Module) -> Iterable[PreTrainedConfig]:
    found = {id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), PreTrainedConfig)}
    return found.values()


def _switch_on(model: nn.Module) -> None:
    with _lock:
        for config in _configs(model):
            _users[id(config)] += 1
            if _users[id(config)] == 1:
                _before[id(config)] = (config, config._attn_implementation_internal)
                config._attn_implementation_internal = NAME


def _switch_off(model: nn.Module) -> None:
    with _lock:
        for config in _configs(model):
            _users[id(config)] -= 1
            if not _users[id(config)]:
                del _users[id(config)]
                config._attn_implementation_internal = _before.pop(id(config))[1]
