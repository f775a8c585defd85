"""What can be switched off in the panel, and the edits that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlt.errors import VltError, check_type
from vlt.probe import edits
from vlt.probe.trace import Trace

# frames_off, segments_off: their numbers
ALL_ON: dict[str, Any] = {"video": True, "audio": True, "positions": True, "frames_off": [], "segments_off": []}


def changed(run: Trace, before: Mapping[str, Any], **told: bool | Sequence[int] | None) -> dict[str, Any]:
    """Switches before, and what is told of some (None: nothing). Raises `VltError` for what the run does not have."""
    out = dict(before)
    for name, value in told.items():
        if value is None:
            continue
        branch = {"positions": "video", "frames_off": "video", "segments_off": "audio"}.get(name, name)
        if branch not in run.setting.branches:
            raise VltError(f"{name}: this run has no {branch}; it has {', '.join(run.setting.branches)}")
        if name.endswith("_off"):
            out[name] = _numbers(run, name, value)
        else:
            check_type(value, bool, f"the switch {name}")
            out[name] = value
    return out


def _numbers(run: Trace, name: str, numbers: Any) -> list[int]:
    check_type(numbers, Sequence, name)
    count = run.axes_of("frames" if name == "frames_off" else "spectrograms")[0].size
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            raise VltError(f"{name}: {number!r}; this clip has {count}, numbered from 0")
    return sorted(set(numbers))


def turned(before: Mapping[str, Any], name: str, number: int, on: bool) -> dict[str, Any]:
    """What `changed` is told where one frame or segment is turned on or off; of the others the browser may not know yet."""
    if name not in ("frames_off", "segments_off"):
        raise VltError(f"the panel has no {name!r}")
    others = set(before[name]) - {number}
    return {name: sorted(others if on else others | {number})}


def as_edits(run: Trace, switches: Mapping[str, Any]) -> list[edits.Edit]:
    there = run.setting.branches
    off = [edits.without(branch) for branch in there if not switches[branch]]
    if "video" in there and switches["video"]:
        off += [edits.zero("frame_position")] if not switches["positions"] else []
        off += [edits.blank(frame=switches["frames_off"])] if switches["frames_off"] else []
    if "audio" in there and switches["audio"] and switches["segments_off"]:
        off.append(edits.mute(segment=switches["segments_off"]))
    return off


def kept(view: Mapping[str, Any]) -> dict[str, Any]:
    """What a switch leaves as it is: heat for a word of the first answer, which stays."""
    word, heat = view["word"], view["heat"]
    return {} if heat is None or word["edited"] else {"word": word, "heat": heat}


def says_again(before: Mapping[str, Any], view: Mapping[str, Any]) -> bool:
    """Was a word of the second answer chosen, and is it there again, at the same place?"""
    word, edited = before["word"], view["edited"]
    if word is None or not word["edited"] or edited is None:
        return False
    number = word["number"]
    same = zip(before["edited"]["tokens"], edited["tokens"], strict=False)
    return any(i == number and a["text"] == b["text"] for i, (a, b) in enumerate(same))
