"""A run that can be read, edited and run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError, check_type, nearest, texts
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Prompt
from vlt.model import stages
from vlt.model.answer import MAX_NEW_TOKENS, Answer
from vlt.model.video_llama import VideoLlama
from vlt.probe import apply, language
from vlt.probe.axes import Axis, Index
from vlt.probe.edits import Edit, Source, as_list
from vlt.probe.engine import ENCODERS, Applied, Watch, check_mode, check_noise, compute, forward
from vlt.probe.labels import Heard, Labels, Wanted, labelled
from vlt.probe.language import Row
from vlt.probe.setting import Setting
from vlt.probe.sites import Site, fits, is_pattern, match, sites

LIMIT = 2**30  # bytes that one reading may keep, unless it is told otherwise


def trace(
    model: VideoLlama,
    clip: Clip,
    question: str,
    *,
    answer: str | None = None,
    history: Sequence[tuple[str, str]] = (),
    branches: Sequence[str] | None = None,
    n_frames: int | None = None,
    coverage: str | None = None,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Trace:
    """One clip, one question, one answer: a run that can be read, edited and run again.

    answer: by default what the model says (greedily); or a text, whose tokens are then read and scored as if it had
    said that. The rest as for `VideoLlama.answer`.
    """
    check_type(model, VideoLlama, "the model of vlt.trace(model, clip, question)")
    check_type(question, str, "the question of vlt.trace(model, clip, question)")
    check_mode(model)
    given, chosen = model.inputs(clip, branches, n_frames, coverage)
    setting = Setting(clip, chosen, n_frames, coverage or model.config.coverage, tuple(history), system, max_new_tokens)
    run = Trace(model, setting, question, {name: value for name, (value, _) in given.items()}, answer)
    run.seconds |= {name: seconds for name, (_, seconds) in given.items()}
    return run


class Trace:
    """See `trace`. What is read is computed when it is first asked for, and kept, also for runs that are made from this one:
    the model's weights must stay as they are meanwhile.

    model, clip, question; edits: those in force. values: stage -> tensor with its clip axis, of those computed so far;
    seconds: what they took. parent: the unedited run, of an edited one. origin: a run of which stages that come out as there
    are taken; mostly the parent.
    """

    def __init__(
        self,
        model: VideoLlama,
        setting: Setting,
        question: str,
        given: Mapping[str, Tensor],
        said: str | None = None,
        parent: Trace | None = None,
        edits: Sequence[Edit] = (),
    ) -> None:
        self.model, self.setting, self.question = model, setting, question
        self.parent, self.origin, self.edits = parent, parent, tuple(edits)
        self.values: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.given, self._said = given, said
        self.labels: Labels = setting.labels(model) if parent is None else parent.labels
        self.sites: dict[str, Site] = sites(model) if parent is None else parent.sites
        self.sources: dict[Any, Trace] = {} if parent is None else parent.sources
        self.applied = [Applied(edit, self.sites) for edit in self.edits]
        self._before: Trace | None = None  # the run whose edits were in force when the last ones came
        check_noise(self.applied)
        for i, applied in enumerate(self.applied):
            self._check_there(applied, self.applied[:i])
            self.question = applied.edit.options.get("question", self.question)

    def __repr__(self) -> str:
        said = f" -> {self.answer.text!r}" if "answer" in self.__dict__ else ""
        cut = f", edits: {', '.join(map(str, self.edits))}" if self.edits else ""
        return f"Trace({self.clip.path.name!r}, {self.question!r}{said}{cut})"

    @property
    def clip(self) -> Clip:
        return self.setting.clip

    def _check_there(self, applied: Applied, before: Sequence[Applied]) -> None:
        """What an edit stands at must be in this run, and not yet as it makes it."""
        edit = applied.edit
        needed = {edit.options.get("branch"), *(stages.branch(stage) for stage in applied.stages)} - {None}
        if lacking := needed - set(self.setting.branches):
            raise VltError(f"{edit}: this run has no {lacking.pop()}; it has {', '.join(self.setting.branches)}")
        if edit.options.get("question") == self.question:
            raise VltError(f"{edit}: is what was asked already; nothing would change")
        if edit.kind == "without" and any(other.edit == edit for other in before):
            raise VltError(f"{edit}: it is taken from the prompt already; nothing would change")

    def _check_has(self, stage: str) -> None:
        if (branch := stages.branch(stage)) is not None and branch not in self.setting.branches:
            raise VltError(f"{stage!r}: this run has no {branch}; it has {', '.join(self.setting.branches)}")

    # ------------------------------------------------------------------ what is said

    @cached_property
    def prompt(self) -> Prompt:
        return self.model.prompt(**self._prompting)

    @cached_property
    def _prompting(self) -> dict[str, Any]:
        s = self.setting
        cut = {a.edit.options["branch"] for a in self.applied if a.edit.kind == "without"}
        shown = s.shown(self.model, tuple(branch for branch in s.branches if branch not in cut))
        return {"clip": shown, "question": self.question, "history": s.history, "system": s.system}

    def ids(self, answer: str) -> tuple[int, ...]:
        """The tokens with which this model would say an answer to this question, its stop sign included."""
        return self.model.answer_ids(self.prompt, answer.strip(), **self._prompting)

    @cached_property
    def answer(self) -> Answer:
        """What the model says; or the text that it was said to have said."""
        if self._said is not None:
            return self.model.spoken(self.prompt, self.ids(self._said))
        with torch.no_grad():
            return language.generate([self], self.setting.max_new_tokens)[0]

    @property
    def tokens(self) -> Axis:
        """The language model's positions, prompt and answer: what each is, and where a phrase points."""
        return self.row.axis

    @cached_property
    def asked(self) -> Axis:
        """The positions of the prompt alone."""
        return Row(self).axis

    def asking(self) -> tuple[Tensor, list[Axis]]:
        """The prompt's embeddings [token, LLM width], and their axes."""
        with torch.no_grad():
            language.encode([row := Row(self)])
            return row.prefix(), [row.axis, self.labels.of_stage("prefix")[1]]

    @cached_property
    def row(self) -> Row:
        """This run's row for the language model."""
        return Row(self, self.answer.ids)

    def word(self, word: int | str) -> int:
        """Which token of the answer is meant: its number, or the first that says this."""
        said = [piece.strip() for piece in self.answer.tokens]
        if isinstance(word, str) and word.strip() in said:
            return said.index(word.strip())
        if isinstance(word, int) and not isinstance(word, bool) and 0 <= word < len(said):
            return word
        close = {piece.lower(): piece for piece in said}.get(word.strip().lower()) if isinstance(word, str) else None
        hint = f" (nearest: {close})" if close else ""
        tokens = f"its tokens are 0 to {len(said) - 1}: {' | '.join(said)}"
        raise VltError(f"the answer has no word {word!r}{hint}; {tokens}; give one of them")

    @cached_property
    def logprobs(self) -> xr.DataArray:
        """log p(token | those before it) of every token of the answer [token] float32, natural logarithm."""
        with torch.no_grad():
            log, _ = language.score([self.row])[0]
        places = np.arange(self.row.begin, self.row.begin + len(log))
        coords = {"token": places, "word": ("token", list(self.answer.tokens))}
        return xr.DataArray(log.cpu().numpy(), dims=["token"], coords=coords, name="log-probability")

    def score(self, answers: str | Sequence[str]) -> Any:
        """log p of other answers to this question, their stop sign included: a float, or a pandas Series of several."""
        several = texts(answers, "an answer")
        rows = [Row(self, self.ids(text)) for text in several]
        with torch.no_grad():
            sums = [float(log.sum()) for log, _ in language.score(rows)]
        return sums[0] if isinstance(answers, str) else pd.Series(sums, index=several, name="log-probability")

    # ------------------------------------------------------------------ reading

    def __getitem__(self, name: str) -> Any:
        """All of a stage or a place: see `read`."""
        return self.read(name)

    def read(self, name: str, **where: Index) -> Any:
        """A stage, or what a place inside the model gives (of a block its residual stream, of an attention what its heads
        say), as a labelled array without the clip axis; for a pattern, a dict of them, from one pass. where: which of it,
        as for edits (token="audio", frame=3); only that is kept."""
        if name in stages.STAGES:
            value, of = self.reading(name)
            places = apply.select(of, where, repr(name))
            return labelled(apply.take(value, places), of, name, places)
        if not is_pattern(name):
            return self._heard(self._there(name)[:1], where)[name].array()
        fitting = [s for s in stages.TENSOR_STAGES if fits(name, s) and stages.branch(s) in (None, *self.setting.branches)]
        there = self._there(name) if not fitting or any(fits(name, site) for site in self.sites) else []
        heard = self._heard(there, where)
        return {s: self.read(s, **where) for s in fitting} | {site: found.array() for site, found in heard.items()}

    def reading(self, name: str) -> tuple[Tensor, list[Axis]]:
        """A stage or a place: the tensor without its clip axis, and its axes."""
        with torch.no_grad():
            if name in stages.STAGES:
                return self.stage(name)[0], self.axes_of(name)
            site = self._there(name)[0]
            return self._heard([site], {})[site.name].value, self.axes_of(site.name)

    @torch.no_grad()
    def _heard(self, there: Sequence[Site], where: Mapping[str, Any]) -> dict[str, Heard]:
        heard = {site.name: Heard(site, self.axes_of(site.name), where) for site in there}
        self.observe({name: found if found.site.columns else found.hear for name, found in heard.items()})
        return heard

    def stage(self, name: str) -> Tensor:
        """A stage's value, with its clip axis."""
        if name not in stages.TENSOR_STAGES:
            raise VltError(f"{name!r} is no array (read .clip, .question, .prompt); {nearest(name, stages.TENSOR_STAGES)}")
        if name in ENCODERS:
            self._check_has(name)
            compute([self], name)
        elif name not in self.values:
            if name == "prefix":
                language.encode([self.row])
                self.values[name] = self.row.prefix()[None]
            elif name == "logits":
                self.values[name] = language.read([self.row])[0][None]
            else:
                self.values[name] = torch.ones(1, self.tokens.size, dtype=torch.bool)
        return self.values[name]

    def observe(self, watch: Watch) -> None:
        """Runs, once, every part of the model in which something is watched, with the edits in force."""
        for stage in dict.fromkeys(self.sites[name].stage for name in watch):
            inside = {name: watcher for name, watcher in watch.items() if self.sites[name].stage == stage}
            if stage == "logits":
                language.read([self.row], watch=inside)
                continue
            self._check_has(stage)
            for need in stages.stage(stage).needs:
                compute([self], need)
            forward([self], stage, inside)

    def attention(
        self,
        name: str,
        *,
        rows: Index | None = None,
        columns: Index | Sequence[str] | None = None,
        head: Index | None = None,
        mean: bool = False,
        limit: int = LIMIT,
    ) -> Any:
        """Exact attention probabilities, float32, of the attentions that a name or a pattern fits
        ("video_qformer.1.cross", "language_model.*.self"): a labelled array [(frame or segment,) head, rows, columns],
        for a pattern a dict of them.

        rows, head: which of them. columns: which; or a list of phrases, each of which becomes one column, the sum over
        its places. mean: over the heads. Only what is asked for is kept; `VltError` if that is more than `limit` bytes.
        """
        wanted = self._wanted(name, rows, columns, head, mean)
        if (size := sum(w.n_bytes for w in wanted)) > limit:
            raise VltError(
                f"{name!r}: {size / 2**20:,.1f} MiB of attention would be kept, the limit is {limit / 2**20:,.1f} MiB; "
                "ask for fewer rows, heads or layers, for columns=[...] as groups, for mean=True, or give limit="
            )
        with torch.no_grad():
            self.observe({w.site.name: w.keep for w in wanted})
        arrays = {w.site.name: w.array() for w in wanted}
        return arrays if is_pattern(name) else arrays[name]

    def attention_bytes(
        self,
        name: str,
        *,
        rows: Index | None = None,
        columns: Index | Sequence[str] | None = None,
        head: Index | None = None,
        mean: bool = False,
    ) -> int:
        """What `attention` would keep, in bytes; nothing is run."""
        return sum(w.n_bytes for w in self._wanted(name, rows, columns, head, mean))

    def _wanted(self, name: str, *asked: Any) -> list[Wanted]:
        return [Wanted(self, site, *asked) for site in self._there(name, ("self", "cross"))]

    def _there(self, name: str, kinds: Sequence[str] = ()) -> list[Site]:
        """The places that a name or a pattern fits, of the branches that this run has."""
        found = match(name, self.sites, kinds, stage_names=not kinds)
        there = [site for site in found if stages.branch(site.stage) in (None, *self.setting.branches)]
        if not there:
            self._check_has(found[0].stage)
        return there

    def stages(self) -> pd.DataFrame:
        """Every stage of this run: its axes, its shape, and the seconds that it took (0: shared with the unedited run)."""
        rows = []
        for name in stages.TENSOR_STAGES:
            if stages.branch(name) in (None, *self.setting.branches):
                shape = tuple(self.stage(name).shape)
                rows.append((name, ", ".join(stages.stage(name).axes), shape, self.seconds.get(name, 0.0)))
        return pd.DataFrame(rows, columns=["stage", "axes", "shape", "seconds"]).set_index("stage")

    def axes_of(self, name: str) -> list[Axis]:
        """Of a stage or a place, without the clip's."""
        found = self.labels.of_stage(name) if name in stages.STAGES else self.labels.of_site(self.sites[name])
        return [self.tokens if axis.name == "token" else axis for axis in found]

    def save_html(self, path: str | Path, **options: Any) -> None:
        """Writes this run as one HTML file that opens offline: heat by word, sweep, stages; see `vlt.panel.report`, also for
        the options (methods, sweep, progress)."""
        from vlt.panel.report import save_html

        save_html(self, path, **options)

    # ------------------------------------------------------------------ again, otherwise

    def rerun(self, edits: Edit | Sequence[Edit], answer: str | None = None) -> Trace:
        """The same run with edits (behind those already in force), up to its answer; only what follows them is computed.
        answer: as for `vlt.trace`. Raises `VltError` where an edit did nothing."""
        again = self.edited(edits, answer)
        with torch.no_grad():
            _ = again.logprobs
        again.check_fired()
        return again

    def edited(self, edits: Edit | Sequence[Edit], answer: str | None = None) -> Trace:
        """As `rerun`, before anything of it is computed."""
        if not (new := as_list(edits)):
            raise VltError("no edit was given")
        root = self.parent or self
        other = Trace(self.model, self.setting, root.question, root.given, answer, root, [*self.edits, *new])
        other._before = self
        return other

    def again(self, given: Mapping[str, Tensor]) -> Trace:
        """The same run, edits and answer, with nothing computed yet, from these tensors: for gradients to reach them."""
        fresh = Trace(self.model, self.setting, (self.parent or self).question, given)
        fresh = Trace(self.model, self.setting, fresh.question, given, None, fresh, self.edits) if self.edits else fresh
        fresh.__dict__["answer"] = self.answer
        return fresh

    @property
    def fired(self) -> dict[str, int]:
        """How often each edit changed numbers, or how many edges of attention it cut, so far."""
        count = Counter[str]()
        for a in self.applied:
            count[str(a.edit)] += a.fired if a.stage != "prompt" else 0
        return {str(a.edit): count[str(a.edit)] for a in self.applied if a.stage != "prompt"}

    def check_fired(self) -> None:
        """Raises `VltError` where a new edit did nothing; those before may be made pointless by it."""
        if idle := self._idle():
            raise VltError(f"{idle[0]}: did nothing: is its branch in the prompt? does anyone look there (none looks ahead)?")

    def _idle(self) -> list[Edit]:
        before = self._before
        known = len(before.edits) if before is not None and not before._idle() else 0
        return [a.edit for a in self.applied[known:] if a.stage != "prompt" and not a.fired]

    def source(self, of: Source) -> Trace:
        """The run that an edit takes values from."""
        if of.live is not None:
            return of.live
        file = Path(of.clip).stat() if Path(of.clip).exists() else None
        if file is None:
            raise VltError(f"{of.clip}: no such file; an edit takes its values from there")
        key = of, of.question or self.question, file.st_size, file.st_mtime_ns
        if key not in self.sources:
            clip = Clip(of.clip)
            options = self.setting.options() if of.options is None else dict(of.options)
            if of.options is None:  # what of them a clip of another kind has no use for
                options["branches"] = [b for b in self.model.usable(clip) if b in self.setting.branches]
                options["n_frames"] = options["n_frames"] if "video" in options["branches"] else None
                options["coverage"] = options["coverage"] if "audio" in options["branches"] else None
            self.sources[key] = trace(self.model, clip, key[1], **options)
        return self.sources[key]
