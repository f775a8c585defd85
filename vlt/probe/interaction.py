"""Is the sound used at all? What video, sound and question each bring to an answer, and what only together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pandas as pd
import torch

from vlt.errors import VltError, check_type
from vlt.probe import edits, language
from vlt.probe.edits import Edit
from vlt.probe.engine import BATCH, check_batch
from vlt.probe.language import Row
from vlt.probe.trace import Trace

# What it means that something is not there: frames of one colour, digital silence, a question nobody can look at.
ABSENT: dict[str, Edit] = {"video": edits.blank(), "sound": edits.mute(), "question": edits.knockout("question")}
_BRANCH = {"video": "video", "sound": "audio"}


def interaction(run: Trace, absent: Mapping[str, Edit] | None = None, batch: int = BATCH) -> pd.Series:
    """Shapley values of video, sound and question for log p(answer), and their interactions.

    The value of a set of them is log p of the run's own answer (stop sign included, natural logarithm) with the others
    taken away. A Shapley value is the mean of what one adds, over all orders in which they could come in; the three sum
    to log p with all minus log p with none. An interaction of two is what they add together beyond what each adds alone,
    averaged over whether the third is there (Shapley interaction index, Grabisch and Roubens 1999); that of three is
    what is left beyond all pairs. All sets count, also those in which the question is not there: what nobody misses while
    question and the other branch are there, as a sweep tells, can have a share here. "values" has both. Exact: all 8 sets
    (4 where the clip has one branch) are run.

    absent: what taking away means, by default `ABSENT`. Returns a Series: "video", "sound", "question", "video x sound",
    ..., and, in attrs, "values" (set -> log p) and "absent".
    """
    check_type(run, Trace, "the run of vlt.interaction(run)")
    check_batch(batch)
    if absent is not None and not isinstance(absent, Mapping):
        raise VltError(f"absent tells of {', '.join(ABSENT)} what taking them away means, {{name: edit}}; got {absent!r}")
    given = dict(ABSENT if absent is None else absent)
    if unknown := set(given) - set(ABSENT):
        raise VltError(f"absent has {sorted(unknown)[0]!r}; it tells of {', '.join(ABSENT)}")
    players = [name for name in ABSENT if _BRANCH.get(name, "video") in run.setting.branches or name == "question"]
    if lacking := [name for name in players if name not in given]:
        raise VltError(f"absent does not tell what it means that {lacking[0]!r} is not there")
    sets = [frozenset(s) for n in range(len(players) + 1) for s in itertools.combinations(players, n)]
    runs = [run.edited([given[p] for p in players if p not in s]) if len(s) < len(players) else run for s in sets]
    with torch.no_grad():
        scores = language.score([Row(r, run.answer.ids) for r in runs], batch)
    for r in runs:
        r.check_fired()
    value = {s: float(log.sum()) for s, (log, _) in zip(sets, scores, strict=True)}
    out = {}
    for size in range(1, len(players) + 1):
        for group in itertools.combinations(players, size):
            out[" x ".join(group)] = _index(frozenset(group), frozenset(players), value)
    result = pd.Series(out, name="log-probability")
    result.attrs = {
        "values": {" + ".join(p for p in players if p in s) or "none": v for s, v in value.items()},
        "absent": {p: str(given[p]) for p in players},
    }
    return result


def _index(group: frozenset[str], players: frozenset[str], value: Mapping[frozenset[str], float]) -> float:
    """The Shapley interaction index of a group; of one player its Shapley value."""
    n, g = len(players), len(group)
    total = 0.0
    rest = sorted(players - group)
    for size in range(len(rest) + 1):
        weight = math.factorial(n - size - g) * math.factorial(size) / math.factorial(n - g + 1)
        for others in itertools.combinations(rest, size):
            total += weight * sum(
                (-1) ** (g - len(part)) * value[frozenset(others) | frozenset(part)]
                for k in range(g + 1)
                for part in itertools.combinations(sorted(group), k)
            )
    return total
