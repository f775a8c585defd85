"""Many edits of one run, as few batches, one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from vlt.errors import VltError, check_type, texts
from vlt.inputs.clip import Clip
from vlt.model import stages
from vlt.model.answer import Answer
from vlt.probe import edits, language
from vlt.probe.edits import Edit, as_list
from vlt.probe.engine import BATCH, check_batch
from vlt.probe.language import Row
from vlt.probe.trace import Trace

UNEDITED = "unedited"
COLUMNS = ("answer", "same", "ended", "logprob", "change", "fired")

# What is often taken away, by name.
ABLATIONS: dict[str, Edit] = {
    "video": edits.without("video"),
    "audio": edits.without("audio"),
    "blank": edits.blank(),
    "mute": edits.mute(),
    "frame_position": edits.zero("frame_position"),
    "segment_position": edits.zero("segment_position"),
    "reverse": edits.reverse(),
    "shuffle": edits.shuffle(),
    "one_frame": edits.repeat(0),
    "image_queries": edits.zero("image_queries"),
    "frame_tokens": edits.zero("frame_tokens"),
    "video_prefix": edits.zero("video_prefix"),
    "audio_features": edits.zero("audio_features"),
    "segment_tokens": edits.zero("segment_tokens"),
    "audio_prefix": edits.zero("audio_prefix"),
    "question": edits.knockout("question"),
}


def ablations(names: Sequence[str]) -> dict[str, Edit]:
    for name in names:
        if name not in ABLATIONS:
            raise VltError(f"no ablation {name!r}; all: {', '.join(ABLATIONS)}")
    return {name: ABLATIONS[name] for name in names}


def possible(run: Trace) -> dict[str, Edit]:
    """The ablations that can be made of this run: those of branches that it has, and of more than one frame."""
    frames = run.labels.of_stage("frames")[0].size if "video" in run.setting.branches else 0
    out = {}
    for name, edit in ABLATIONS.items():
        if edit.kind == "reorder" and frames < 2:
            continue
        try:
            (*_, applied) = run.edited(edit).applied
        except VltError:  # this run has no such branch
            continue
        needed = {edit.options.get("branch"), *map(stages.branch, applied.stages & set(stages.STAGES))} - {None}
        if needed <= set(run.prompt.branches):
            out[name] = edit
    return out


def sweep(
    run: Trace,
    variants: Mapping[str, Edit | Sequence[Edit]],
    *,
    candidates: Sequence[str] = (),
    batch: int = BATCH,
    keep: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """What a run answers, and how likely it finds what it answered before, under each of many edits.

    variants: name -> edit, or edits that are in force together (behind those of `run`). candidates: other answers to be
    scored. batch: how many runs are computed together; more takes more memory. keep: a file (JSON lines) to which every
    result is added as it comes; another call goes on from there.

    Returns a table by name, the unedited run first: answer; same (as the unedited one's); ended (by "stop", or cut off:
    "length"); logprob of the unedited answer, its stop sign included; change of that; fired (how often the edits were applied
    while answers were scored); and the logprob of every candidate. The numbers are those that `run.rerun` gives one by one,
    up to the rounding of the model's dtype (batches round otherwise: in bfloat16 log p of an answer differs by some
    hundredths); frames and segments that are as they were, wherever they stand now, are not encoded again.
    """
    if not isinstance(variants, Mapping) or not variants or UNEDITED in variants:
        raise VltError(f"give at least one variant, {{name: edits}}, none of them named {UNEDITED!r}")
    check_type(run, Trace, "the run of vlt.sweep(run, variants)")
    candidates = _candidates(candidates)
    check_batch(batch)
    asked: dict[str, list[Edit]] = {UNEDITED: []} | {name: as_list(found) for name, found in variants.items()}
    if empty := [name for name in variants if not asked[name]]:
        raise VltError(f"{empty[0]}: no edit was given")
    runs = {name: run.edited(found) if found else run for name, found in asked.items()}  # all are checked before any runs
    results: dict[str, dict[str, Any]] = {}
    shelf = None
    if keep is not None:
        edits.dumps([edit for found in asked.values() for edit in found])  # can all be told apart on disk?
        shelf = Shelf(Path(keep), run, candidates)
        results = {name: known for name, found in asked.items() if (known := shelf.find(found)) is not None}
    todo = [name for name in asked if name not in results]
    with tqdm(total=len(todo), desc="sweep", disable=not progress, leave=False) as bar, torch.no_grad():
        for at in range(0, len(todo), batch):
            names = todo[at : at + batch]
            idle = []
            for name, result in zip(names, _batch(run, [runs[n] for n in names], candidates, batch), strict=True):
                if fault := _fault(runs[name]):
                    idle.append(f"{name}: {fault}")
                    continue
                results[name] = result
                if shelf is not None:
                    shelf.add(asked[name], result)
            if idle:  # what else there was is kept
                raise VltError(idle[0])
            for name in names:  # what this batch computed is in the results: its memory is free again
                if runs[name] is not run:
                    del runs[name]
            bar.update(len(names))
    return _table(results, asked, candidates)


def _candidates(given: Sequence[str]) -> list[str]:
    found = texts(given, "a candidate")
    if clash := {"name", *COLUMNS} & set(found):
        raise VltError(f"a candidate is named {clash.pop()!r}, as a column of the table is")
    return found


def _fault(run: Trace) -> str:
    try:
        run.check_fired()
    except VltError as error:
        return str(error)
    return ""


def _batch(run: Trace, runs: Sequence[Trace], candidates: Sequence[str], batch: int) -> list[dict[str, Any]]:
    rows = [Row(r, ids) for r in runs for ids in (run.answer.ids, *(r.ids(text) for text in candidates))]
    scores = language.score(rows, batch)
    each = 1 + len(candidates)
    first = scores[::each]
    # where every token of the old answer is still the likeliest, a greedy answer is the old one: it need not be made
    changed = [r for r, (_, same) in zip(runs, first, strict=True) if not same and r is not run]
    fired = [sum(r.fired.values()) for r in runs]  # while an answer is made, rows that have ended go on beside the others
    answers: dict[int, Answer] = {}
    if changed:
        made = language.generate(changed, run.setting.max_new_tokens, batch)
        answers = {id(r): answer for r, answer in zip(changed, made, strict=True)}
    out = []
    for i, r in enumerate(runs):
        logprobs = [float(log.sum()) for log, _ in scores[i * each : (i + 1) * each]]
        answer = answers.get(id(r), run.answer)
        told = {"answer": answer.text, "ended": answer.ended, "logprobs": logprobs}
        out.append(told | {"fired": fired[i] if r is not run else 0})
    return out


def _table(results: Mapping[str, dict[str, Any]], asked: Mapping[str, Any], candidates: Sequence[str]) -> pd.DataFrame:
    before = results[UNEDITED]
    rows = []
    for name in asked:
        result = results[name]
        log = result["logprobs"]
        row = {"name": name, "answer": result["answer"], "same": result["answer"] == before["answer"], "logprob": log[0]}
        row |= {"ended": result["ended"], "change": log[0] - before["logprobs"][0], "fired": result["fired"]}
        rows.append(row | dict(zip(candidates, log[1:], strict=True)))
    return pd.DataFrame(rows).set_index("name")


BEGIN = b'{"key": "'  # of every line


def _key_of(edit: Edit, run: Trace) -> list[Any]:
    """An edit, and what the values that it takes hang on."""
    sources: list[Any] = []
    for source in edit.sources:
        stat = Clip(source.clip).path.stat()  # a missing file is refused in its words
        other = _fingerprint(source.live.model) if source.live is not None and source.live.model is not run.model else ""
        sources.append([stat.st_size, stat.st_mtime_ns, other])
    return [edit.as_json(), sources]


class Shelf:
    """Results on disk, one JSON line each, under a key of all that they hang on: model, clip, question, edits."""

    def __init__(self, path: Path, run: Trace, candidates: Sequence[str]) -> None:
        self.path = path
        setting = run.setting
        stat = setting.clip.path.stat()
        file = [setting.clip.path.name, stat.st_size, stat.st_mtime_ns]
        asked = [run.question, setting.history, setting.system, setting.n_frames, setting.coverage, setting.branches]
        # log p: a model can be other than its weights tell, by hooks or by numbers that are no weights
        said = [run.answer.ids, round(float(run.logprobs.sum()), 4), list(candidates), setting.max_new_tokens]
        self.base = json.dumps([_fingerprint(run.model), file, asked, said])
        self.before = [_key_of(edit, run) for edit in run.edits]
        self.run = run
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise VltError(f"{path}: give a file in a folder that exists")
        self.known: dict[str, dict[str, Any]] = {}
        whole, _, rest = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = json.loads(line)
                self.known[row["key"]] = {key: row[key] for key in ("answer", "ended", "logprobs", "fired")}
            except (ValueError, TypeError, KeyError) as error:
                raise VltError(f"{path}, line {number}: not a result of a sweep; name another file") from error
        if rest:  # cut off while it was written: it is made again
            if rest[: len(BEGIN)] != BEGIN[: len(rest)]:
                raise VltError(f"{path}: ends in what is not a result of a sweep; name another file")
            path.write_bytes(whole + b"\n" if whole else b"")

    def _key(self, found: Sequence[Edit]) -> str:
        whole = self.base + json.dumps(self.before + [_key_of(edit, self.run) for edit in found], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def find(self, found: Sequence[Edit]) -> dict[str, Any] | None:
        return self.known.get(self._key(found))

    def add(self, found: Sequence[Edit], result: Mapping[str, Any]) -> None:
        line = json.dumps({"key": self._key(found), "edits": [str(edit) for edit in found], **result})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise VltError(f"{self.path}: cannot be written ({error.strerror})") from error


def _fingerprint(model: Any) -> str:
    """Tells models apart: their sizes, and the bits of all weights, added up along every row and every column."""
    digest = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        bits = weight.detach().reshape(len(weight) if weight.ndim else 1, -1).contiguous()
        bits = bits.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        for along in (0, 1):
            digest.update(bits.sum(along, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()
