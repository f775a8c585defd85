"""What many ablations of one clip cost: one by one, in one sweep, and against as many full runs.

    python benchmarks/sweeps.py [--rounds 5] [--json FILE]

The box, `two_bell.mp4`, 16 ablations of what the model is given and of its stages. A full run begins at the file and ends
with the scored answer. Each way's numbers are first compared with those of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from common import CLIP, Result, Turns, finish, goal, parser

import vlt

MOST = 16
TOLERANCE = 1e-4


def variants() -> dict[str, Any]:
    e = vlt.edits
    out = {f"frame {i}": e.blank(frame=i) for i in range(0, 8, 2)} | {f"segment {i}": e.mute(segment=i) for i in range(0, 8, 2)}
    out |= {"video": e.blank(), "sound": e.mute(), "reversed": e.reverse(), "frame_position": e.zero("frame_position")}
    out |= {f"{name} 0": e.zero(name) for name in ("video_prefix", "audio_prefix", "video_queries", "audio_queries")}
    assert len(out) == MOST
    return out


def measure(rounds: int) -> Result:
    model, question = vlt.load(device="cpu"), "What do you hear?"
    wanted = variants()
    said = vlt.trace(model, vlt.Clip(CLIP), question).answer.text

    def full() -> Any:
        run = vlt.trace(model, vlt.Clip(CLIP), question, answer=said)
        return run, float(run.logprobs.sum())

    def one_by_one() -> list[float]:
        run, _ = full()
        return [float(run.rerun(edit, answer=said).logprobs.sum()) for edit in wanted.values()]

    def in_a_sweep() -> list[float]:
        run, _ = full()
        return vlt.sweep(run, wanted, progress=False)["logprob"].tolist()[1:]

    single, swept = one_by_one(), in_a_sweep()
    apart = max(abs(a - b) for a, b in zip(single, swept, strict=True))
    if apart > TOLERANCE:
        raise SystemExit(f"the sweep's numbers differ from those of one by one by {apart:.1e}")
    base, _ = full()
    calls = {
        "a full run": full,
        "a full run again (A/A)": full,
        "16 one by one, the unedited run included": one_by_one,
        "16 in a sweep, the unedited run included": in_a_sweep,
        "16 in a sweep, of a run that is there": lambda: vlt.sweep(base, wanted, progress=False),
    }
    turns = Turns(calls, rounds)
    ratios = {way: turns.ratio(way, "a full run") for way in calls}
    rows = [{"way": way, "/ a full run": ratio, "/ 16 full runs": ratio / MOST} for way, ratio in ratios.items()]
    share = turns.ratio("16 in a sweep, of a run that is there", "a full run")
    goals = [
        goal("16 ablations in a sweep / 16 full runs", share / MOST, 1 / 8),
        goal("largest difference of log p between the two", apart, TOLERANCE),
    ]
    return {"16 ablations of one clip": rows, "goals": goals}


def main() -> None:
    options = parser(__doc__, rounds=5).parse_args()
    torch.set_num_threads(options.threads)
    finish(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
