"""What capturing costs: all attention patterns and all residual streams of a small Llama, against a plain forward.

    python benchmarks/capture.py [--rounds 150] [--json FILE]

The model is random; its prompt is embeddings, 40 soft tokens before those of words. What each way captures is first
compared with what raw hooks read from eager attention, then all take turns. All models share one set of weights. Two are
plain: with SDPA, which is transformers' default and gives no patterns, and with eager attention, on which all ways but
vlt's rest: the goal is set against that one, which is what a capture costs elsewhere before it begins. Times are CPU time,
unless it says wall.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from common import MIB, Result, Turns, finish, goal, largest, parser, peak_bytes
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vlt.model import box
from vlt.probe.attention import Keep, Tap

TOLERANCE = 1e-5
SOFT = 40
SIZES = {  # layers, width, heads, tokens, share of the rounds
    "S": (4, 128, 4, 64, 1.0),
    "M": (8, 512, 8, 192, 0.15),
}
PLAIN, EAGER, OFF, OPENED, OPEN = "plain", "plain, eager", "vlt, tap off", "vlt, opened each time", "vlt, opened once"
A_A, EAGER_A_A = "plain again (A/A)", "plain, eager, again (A/A)"
Capture = Callable[[], list[Tensor]]  # returns the patterns, then the residual stream behind every layer


def run(model: Any, prompt: Tensor, **options: Any) -> Any:
    return model(inputs_embeds=prompt, use_cache=False, **options)


def by_hooks(model: Any, prompt: Tensor) -> Capture:
    patterns: list[Tensor] = []
    residuals: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda module, inputs, output: patterns.append(output[1]))
        layer.register_forward_hook(lambda module, inputs, output: residuals.append(output))

    def call() -> list[Tensor]:
        patterns.clear()
        residuals.clear()
        run(model, prompt)
        return patterns + residuals

    return call


def by_flags(model: Any, prompt: Tensor) -> Capture:
    """Its last hidden state is behind the final norm: it is not the last residual stream, and left out."""

    def call() -> list[Tensor]:
        out = run(model, prompt, output_attentions=True, output_hidden_states=True)
        return [*out.attentions, *out.hidden_states[1:-1]]

    return call


def by_vlt(model: Any, prompt: Tensor) -> tuple[Tap, Capture]:
    """The tap, which is yet to be opened, and what runs in it."""
    keeps = {layer.self_attn: [Keep()] for layer in model.model.layers}
    residuals: list[Tensor] = []

    def call() -> list[Tensor]:
        residuals.clear()
        run(model, prompt)
        return [keep.kept for (keep,) in keeps.values() if keep.kept is not None] + residuals

    return Tap(model, keeps, {layer: [residuals.append] for layer in model.model.layers}), call


def by_vlt_each_time(model: Any, prompt: Tensor) -> Capture:
    def opened() -> list[Tensor]:
        tap, call = by_vlt(model, prompt)
        with tap:
            return call()

    return opened


def by_nnsight(model: Any, prompt: Tensor) -> Capture:
    import nnsight

    nn = nnsight.NNsight(model)

    def call() -> list[Tensor]:
        with nn.trace(inputs_embeds=prompt, use_cache=False):
            patterns, residuals = [], []
            for layer in nn.model.layers:
                patterns.append(layer.self_attn.output[1])
                residuals.append(layer.output)
            found = nnsight.save(patterns + residuals)
        return found  # noqa: RET504  # nnsight sets it when the block ends

    return call


def by_bridge(model: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(box.folder())  # it asks for one; embeddings do not
        return TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer)


def by_transformer_lens(model: Any, prompt: Tensor) -> Capture:
    bridge = by_bridge(model)
    wanted = [f"blocks.{i}.attn.hook_pattern" for i in range(len(model.model.layers))]
    wanted += [f"blocks.{i}.hook_resid_post" for i in range(len(wanted))]

    def call() -> list[Tensor]:
        _, cache = bridge.run_with_cache(prompt, names_filter=wanted, return_cache_object=False)
        return [cache[name] for name in wanted]

    return call


def build(size: str) -> tuple[Callable[[str], Any], Tensor]:
    """Makes models of one set of random weights, by their attention; and a prompt's embeddings [1, token, width]."""
    layers, width, heads, tokens, _ = SIZES[size]
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "vocab_size": 259}
    config = LlamaConfig(**sizes, num_attention_heads=heads)
    weights = LlamaForCausalLM(config).state_dict()
    prompt = torch.cat([torch.randn(SOFT, width), weights["model.embed_tokens.weight"][: tokens - SOFT]])[None]

    def new(attention: str) -> Any:
        model = LlamaForCausalLM._from_config(copy.deepcopy(config), attn_implementation=attention)
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)

    return new, prompt


def measure_size(name: str, rounds: int, stack: ExitStack) -> Result:
    layers, width, _, tokens, share = SIZES[name]
    new, prompt = build(name)
    plain, eager, watched = new("sdpa"), new("eager"), new("sdpa")
    tap, call = by_vlt(new("sdpa"), prompt)
    stack.enter_context(tap)
    ways: dict[str, Capture] = {"raw hooks": by_hooks(new("eager"), prompt), "HF flags": by_flags(eager, prompt)}
    ways |= {OPENED: by_vlt_each_time(watched, prompt), OPEN: call}
    missing = []
    for peer, way in {"nnsight": by_nnsight, "TransformerLens": by_transformer_lens}.items():
        try:
            ways[peer] = way(new("eager"), prompt)
        except ImportError as error:
            missing.append({"not measured": peer, "why": f"{error}; see benchmarks/README.md for how to install it"})
    expected = ways["raw hooks"]()
    wrong: dict[str, float] = {}
    for way, capture in ways.items():
        found = capture()
        wrong[way] = largest(found, expected[: len(found)])
        if len(found) < 2 * layers - 1 or wrong[way] > TOLERANCE:
            raise SystemExit(f"{way}: {len(found)} values, which differ by {wrong[way]:.1e} from those of eager attention")
    calls: dict[str, Callable[[], Any]] = {PLAIN: lambda: run(plain, prompt), A_A: lambda: run(plain, prompt)}
    calls |= {OFF: lambda: run(watched, prompt), EAGER: lambda: run(eager, prompt), EAGER_A_A: lambda: run(eager, prompt)}
    calls |= ways
    turns = Turns(calls, max(int(rounds * share), 10))
    rows = [
        {
            "way": way,
            "/ plain": turns.ratio(way, PLAIN),
            "/ plain, eager": turns.ratio(way, EAGER),
            "/ plain, wall": turns.ratio(way, PLAIN, "wall"),
            "us a value, over plain": 1e6 * (turns.median(way) - turns.median(PLAIN)) / (2 * layers) if way in ways else None,
            "peak MiB": peak_bytes(calls[way]) / MIB,
            "difference": wrong.get(way),
        }
        for way in calls
    ]
    title = f"{name}: {layers} layers, width {width}, {tokens} tokens"
    versus = turns.ratio(OPEN, "nnsight") if "nnsight" in ways else None
    goals = [
        goal(f"{name}: {OPEN} / {EAGER}", turns.ratio(OPEN, EAGER), 1.10),
        goal(f"{name}: {OPEN} / nnsight", versus, 1.0),
        goal(f"{name}: {OFF} / plain", turns.ratio(OFF, PLAIN), 1.02),
    ]
    return {title: rows, "goals": goals} | ({"not measured": missing} if missing else {})


@torch.no_grad()
def measure(rounds: int) -> Result:
    result: Result = {}
    with ExitStack() as stack:
        for name in SIZES:
            for title, rows in measure_size(name, rounds, stack).items():
                result[title] = result.get(title, []) + rows
    return result


def main() -> None:
    options = parser(__doc__, rounds=150).parse_args()
    torch.set_num_threads(options.threads)
    finish(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
