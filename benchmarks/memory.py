"""What it takes to keep how an answer's rows look at six groups of tokens, in 32 layers.

    python benchmarks/memory.py [--rounds 3] [--json FILE]

32 layers of tiny heads (4 of width 8), prompts of 300, 1024 and 4096 tokens, 4 rows of an answer. vlt reduces inside
the forward; HF's flags and TransformerLens' cache, filtered by name, keep whole patterns; nnsight is made to reduce each
layer's pattern as it comes. Peak: the most that tensors held at once beyond what was there before,
by torch's own record of every allocation. Kept: what is left when the run is over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from capture import by_bridge
from common import MIB, Result, Turns, finish, goal, largest, parser, peak_bytes
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlt.probe.attention import Keep, Tap

LAYERS, HEADS, WIDTH, ROWS, GROUPS = 32, 4, 32, 4, 6
TOKENS = (300, 1024, 4096)
WHOLE = 1100  # tokens, up to which whole patterns are kept here: 32 layers at 4096 take 8 GiB

Read = Callable[[], Tensor]


def model_of(attention: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "vocab_size": 259}
    config = LlamaConfig(**sizes, num_attention_heads=HEADS, max_position_embeddings=max(TOKENS))
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval().requires_grad_(False)


def groups_of(n: int) -> list[Tensor]:
    return list(torch.arange(n).tensor_split(GROUPS))


def summed(pattern: Tensor, n: int) -> Tensor:
    """[b, head, row, column] -> of the last rows [b, head, row, group]."""
    return torch.stack([pattern[:, :, -ROWS:, group].sum(-1) for group in groups_of(n)], dim=-1)


def by_vlt(model: Any, prompt: Tensor) -> Read:
    n = prompt.shape[1]

    def read() -> Tensor:
        keeps = {layer.self_attn: [Keep(rows=torch.arange(n - ROWS, n), groups=groups_of(n))] for layer in model.model.layers}
        with Tap(model, keeps):
            model(inputs_embeds=prompt, use_cache=False, logits_to_keep=1)
        return torch.stack([keep.kept for (keep,) in keeps.values() if keep.kept is not None])

    return read


def by_flags(model: Any, prompt: Tensor) -> Read:
    def read() -> Tensor:
        out = model(inputs_embeds=prompt, use_cache=False, logits_to_keep=1, output_attentions=True)
        return torch.stack([summed(p, prompt.shape[1]) for p in out.attentions])

    return read


def by_nnsight(model: Any, prompt: Tensor) -> Read:
    import nnsight

    nn = nnsight.NNsight(model)

    def read() -> Tensor:
        with nn.trace(inputs_embeds=prompt, use_cache=False, logits_to_keep=1):
            kept = []
            for layer in nn.model.layers:
                kept.append(summed(layer.self_attn.output[1], prompt.shape[1]))
            found = nnsight.save(kept)
        return torch.stack(found)

    return read


def by_transformer_lens(model: Any, prompt: Tensor) -> Read:
    bridge = by_bridge(model)
    wanted = [f"blocks.{i}.attn.hook_pattern" for i in range(LAYERS)]

    def read() -> Tensor:
        _, cache = bridge.run_with_cache(prompt, names_filter=wanted, return_cache_object=False)
        return torch.stack([summed(cache[name], prompt.shape[1]) for name in wanted])

    return read


@torch.no_grad()
def measure(rounds: int) -> Result:
    plain, eager = model_of("sdpa"), model_of("eager")
    eager.load_state_dict(plain.state_dict())
    rows, goals = [], []
    for n in TOKENS:
        prompt = torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(n))
        ways: dict[str, Read] = {"vlt": by_vlt(plain, prompt)}
        if n <= WHOLE:
            ways["HF flags"] = by_flags(eager, prompt)
            for peer, way in {"nnsight": by_nnsight, "TransformerLens": by_transformer_lens}.items():
                try:
                    ways[peer] = way(copy.deepcopy(eager), prompt)  # TransformerLens rebuilds what it is given
                except ImportError:
                    rows.append({"tokens": n, "way": f"{peer} (not installed)"})
        expected = ways["vlt"]()
        calls: dict[str, Callable[[], Any]] = {
            "plain": lambda p=prompt: plain(inputs_embeds=p, use_cache=False, logits_to_keep=1)
        }
        calls |= ways
        turns = Turns(calls, rounds, drop=1)
        bare = peak_bytes(calls["plain"])
        for way, call in calls.items():
            peak = peak_bytes(call)
            off = largest(call(), expected) if way != "plain" else None
            rows.append(
                {
                    "tokens": n,
                    "way": way,
                    "peak MiB": peak / MIB,
                    "over plain MiB": (peak - bare) / MIB,
                    "/ plain": turns.ratio(way, "plain"),
                    "difference": off,
                }
            )
            if off is not None and off > 1e-5:
                raise SystemExit(f"{way} at {n} tokens: differs by {off:.1e}")
        whole = 4 * LAYERS * HEADS * n * n
        over = peak_bytes(calls["vlt"]) - bare
        goals.append(goal(f"{n} tokens: vlt's peak over plain / all patterns", over / whole, 1 / LAYERS))
    head = rows and max(rows, key=len)
    table = [{column: row.get(column) for column in head} for row in rows]
    return {"rows of an answer x six groups, 32 layers": table, "goals": goals}


def main() -> None:
    options = parser(__doc__, rounds=3).parse_args()
    torch.set_num_threads(options.threads)
    finish(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
