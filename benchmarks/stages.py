"""Where the time of a run goes: every stage as a share of the whole, and what re-using a stage saves.

    python benchmarks/stages.py [CLIP] [--model box] [--rounds 20] [--threads 1] [--json FILE]

All numbers are ratios within one run: the variants take turns, round by round, and each is the median over the rounds.
The A/A row is the full run measured twice: its distance from 1.00 is what this machine cannot resolve.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable

import torch
from common import CLIP, Result, finish, parser
from tqdm.auto import tqdm

import vlt
from vlt.model.stages import STAGES


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def measure(model: vlt.VideoLlama, clip: vlt.Clip, rounds: int) -> Result:
    question = {"clip": clip, "question": "What do you see?"}
    stored = model.run(question, [n for n in STAGES if n not in ("clip", "question")])
    stages: dict[str, list[float]] = defaultdict(list)
    variants: dict[str, Callable[[], object]] = {
        "full run": lambda: model.run(question, ["logits"], lambda name, value, s: stages[name].append(s)),
        "full run again (A/A)": lambda: model.run(question, ["logits"], lambda name, value, s: None),
    }
    for given in ("frames", "patches", "frame_tokens", "video_prefix"):
        values = {given: stored[given], "spectrograms": stored["spectrograms"], "prompt": stored["prompt"]}
        variants[f"given {given} and spectrograms"] = lambda values=values: model.run(values, ["logits"])
    both = {name: stored[name] for name in ("video_prefix", "audio_prefix", "prompt")}
    variants["given both prefixes"] = lambda: model.run(both, ["logits"])
    times: dict[str, list[float]] = defaultdict(list)
    for i in tqdm(range(rounds + 2), desc="rounds", leave=False):
        names = list(variants)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(seconds(variants[name]))
    whole = statistics.median(times["full run"][2:])
    return {
        "stages": [{"stage": name, "/ full run": statistics.median(s[2:]) / whole} for name, s in stages.items()],
        "variants": [{"variant": name, "/ full run": statistics.median(s[2:]) / whole} for name, s in times.items()],
    }


def main() -> None:
    parse = parser(__doc__, rounds=20)
    parse.add_argument("clip", nargs="?", default=CLIP)
    parse.add_argument("--model", default="box")
    options = parse.parse_args()
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vlt.load(options.model)
    finish(measure(model, vlt.Clip(options.clip), options.rounds), options.json)


if __name__ == "__main__":
    main()
