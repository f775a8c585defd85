"""Cutting edges of attention: are the effects right, how many a second, and does the cache change them?

    python benchmarks/knockout.py [--rounds 20] [--json FILE]

A random Llama (4 layers, width 128, 64 tokens, 40 of them soft). Six pairs of token groups times three windows of layers:
in each, the rows of one group do not look at the columns of the other, and the answer's probability is read. The reference
is a 4-D mask written by hand, put in place of the layers' own. TransformerLens sets scores to minus infinity; nnsight
replaces the mask. Zeroing probabilities is another intervention: what is left does not sum to one. Its effect is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from capture import SOFT, build, by_bridge, run
from common import Result, Turns, finish, goal, parser
from torch import Tensor

from vlt.probe.attention import Cut, Tap

TOKENS, NEW = 64, 12
GROUPS = {"video": range(20), "sound": range(20, SOFT), "question": range(SOFT, 60), "last": range(60, TOKENS)}
PAIRS = [("last", "video"), ("last", "sound"), ("last", "question"), ("question", "video"), ("question", "sound"),
         ("sound", "video")]  # fmt: skip
WINDOWS = [(0, 2), (2, 4), (0, 4)]
Knockout = tuple[Sequence[int], Sequence[int], tuple[int, int]]
KNOCKOUTS: list[Knockout] = [(GROUPS[a], GROUPS[b], window) for (a, b), window in itertools.product(PAIRS, WINDOWS)]


def probability(logits: Tensor, token: int) -> float:
    return float(logits[0, -1].float().softmax(-1)[token])


def mask_of(rows: Sequence[int], columns: Sequence[int], n: int = TOKENS) -> Tensor:
    """[1, 1, row, column]: 0 where one may look, the least number where not."""
    allowed = torch.ones(n, n, dtype=torch.bool).tril()
    allowed[torch.tensor(rows)[:, None], torch.tensor(columns)] = False
    return torch.zeros(1, 1, n, n).masked_fill(~allowed, torch.finfo(torch.float32).min)


def by_hand(model: Any, prompt: Tensor, token: int) -> Callable[[Knockout], float]:
    def cut(knockout: Knockout) -> float:
        rows, columns, (first, last) = knockout
        mask = mask_of(rows, columns)
        with ExitStack() as stack:
            for layer in model.model.layers[first:last]:
                replace = lambda module, args, named: (args, {**named, "attention_mask": mask})  # noqa: E731
                handle = layer.self_attn.register_forward_pre_hook(replace, with_kwargs=True)
                stack.callback(handle.remove)
            return probability(run(model, prompt).logits, token)

    return cut


def watchers(model: Any, knockout: Knockout) -> dict[Any, list[Cut]]:
    rows, columns, (first, last) = knockout
    places = torch.tensor(rows), torch.tensor(columns)
    return {layer.self_attn: [Cut(*places, 0, 1, "nothing is left to look at")] for layer in model.model.layers[first:last]}


def by_vlt(model: Any, prompt: Tensor, token: int) -> Callable[[Knockout], float]:
    def cut(knockout: Knockout) -> float:
        with Tap(model, watchers(model, knockout)):
            return probability(run(model, prompt).logits, token)

    return cut


def by_nnsight(model: Any, prompt: Tensor, token: int) -> Callable[[Knockout], float]:
    import nnsight

    nn = nnsight.NNsight(model)

    def cut(knockout: Knockout) -> float:
        rows, columns, (first, last) = knockout
        mask = mask_of(rows, columns)
        with nn.trace(inputs_embeds=prompt, use_cache=False):
            for layer in nn.model.layers[first:last]:
                args, named = layer.self_attn.inputs
                layer.self_attn.inputs = (args, {**named, "attention_mask": mask})
            logits = nnsight.save(nn.output.logits)
        return probability(logits, token)

    return cut


def by_transformer_lens(model: Any, prompt: Tensor, token: int, zero: bool = False) -> Callable[[Knockout], float]:
    bridge = by_bridge(model)

    def cut(knockout: Knockout) -> float:
        rows, columns, (first, last) = knockout
        at = torch.tensor(rows)[:, None], torch.tensor(columns)

        def change(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, :, at[0], at[1]] = 0.0 if zero else torch.finfo(torch.float32).min
            return value

        name = "hook_pattern" if zero else "hook_attn_scores"
        hooks = [(f"blocks.{i}.attn.{name}", change) for i in range(first, last)]
        return probability(bridge.run_with_hooks(prompt, fwd_hooks=hooks, return_type="logits"), token)

    return cut


def decoded(model: Any, prompt: Tensor, knockout: Knockout, cache: bool) -> list[int]:
    """Greedy ids, step by step; with the cache each step runs one token. Rows that reach the prompt's end go on into what
    is said: else no step after the first would be cut, and nothing would be compared."""
    rows, columns, window = knockout
    knockout = (range(rows[0], TOKENS + NEW) if len(rows) and rows[-1] == TOKENS - 1 else rows, columns, window)
    embed = model.get_input_embeddings()
    ids: list[int] = []
    past, given = None, prompt
    with Tap(model, watchers(model, knockout)):
        for _ in range(NEW):
            out = model(inputs_embeds=given, use_cache=cache, past_key_values=past)
            ids.append(int(out.logits[0, -1].argmax()))
            past = out.past_key_values if cache else None
            new = embed(torch.tensor([ids[-1:]]))
            given = new if cache else torch.cat([given, new], dim=1)
    return ids


@torch.no_grad()
def measure(rounds: int) -> Result:
    new, prompt = build("S")
    model = new("sdpa")
    token = int(run(model, prompt).logits[0, -1].argmax())
    plain = probability(run(model, prompt).logits, token)
    ways = {"masks by hand": by_hand(new("eager"), prompt, token), "vlt": by_vlt(model, prompt, token)}
    missing = []
    for peer, way in {"nnsight": by_nnsight, "TransformerLens": by_transformer_lens}.items():
        try:
            ways[peer] = way(new("eager"), prompt, token)
        except ImportError as error:
            missing.append({"not measured": peer, "why": str(error)})
    drops = {way: [plain - cut(knockout) for knockout in KNOCKOUTS] for way, cut in ways.items()}
    apart = {way: max(abs(a - b) for a, b in zip(found, drops["masks by hand"], strict=True)) for way, found in drops.items()}
    if "TransformerLens" in ways:
        zeroed = by_transformer_lens(new("eager"), prompt, token, zero=True)
        found = [plain - zeroed(knockout) for knockout in KNOCKOUTS]
        apart["probabilities zeroed"] = max(abs(a - b) for a, b in zip(found, drops["masks by hand"], strict=True))
    calls = {way: lambda cut=cut: [cut(knockout) for knockout in KNOCKOUTS] for way, cut in ways.items()}
    calls["masks by hand, again (A/A)"] = calls["masks by hand"]
    turns = Turns(calls, rounds)
    rows = [
        {
            "way": way,
            "largest difference of a probability's drop": apart.get(way),
            "/ masks by hand": turns.ratio(way, "masks by hand") if way in calls else None,
            "knockouts a CPU second": len(KNOCKOUTS) / turns.median(way) if way in calls else None,
        }
        for way in [*calls, *(["probabilities zeroed"] if "probabilities zeroed" in apart else [])]
    ]
    same = [decoded(model, prompt, knockout, True) == decoded(model, prompt, knockout, False) for knockout in KNOCKOUTS]
    changed = sum(
        decoded(model, prompt, k, True) != decoded(model, prompt, (range(0), range(0), (0, 0)), True) for k in KNOCKOUTS
    )
    goals = [
        goal("vlt: largest difference from masks by hand", apart["vlt"], 1e-5),
        goal(f"of {len(same)} knockouts, answers of {NEW} tokens that differ with the cache on", float(same.count(False)), 0.0),
        goal("vlt / masks by hand", turns.ratio("vlt", "masks by hand"), 1.25),
    ]
    told = [{"knockouts": len(KNOCKOUTS), "that change the answer": changed, "largest drop": max(drops["masks by hand"])}]
    result = {"18 knockouts": rows, "what they do": told, "goals": goals}
    return result | ({"not measured": missing} if missing else {})


def main() -> None:
    options = parser(__doc__, rounds=20).parse_args()
    torch.set_num_threads(options.threads)
    finish(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
