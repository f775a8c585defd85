"""The loop, the paper's four phases on files, and that training which was cut off comes to the same end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from tests.conftest import Numbers, close, stand_in
from tests.model.test_reference import GRADIENTS, caption_prompts, instruction_prompts, kind
from tests.test_cli import here
from vlt import cli
from vlt.errors import VltError
from vlt.model import load as loading
from vlt.model.checkpoints import _our_name
from vlt.model.load import load
from vlt.model.video_llama import VideoLlama
from vlt.train import datasets, recipe, supervision
from vlt.train.branches import PARTS, Branch
from vlt.train.recipe import PHASES, Schedule, Source

ROOT = Path(__file__).parents[2]
SHORT = Schedule(steps=4, batch=2, rate=1e-2, min_rate=1e-3, warmup_rate=1e-4, warmup=1)


@pytest.mark.parametrize(
    ("name", "jump"),
    [("vl-1", (1e-4, 9.81e-5)), ("vl-2", (3e-5, 2.5e-5)), ("al-1", (1e-4, 9.81e-5)), ("al-2", (3e-5, 2.91e-5))],
)
def test_rates_are_the_originals(name: str, jump: tuple[float, float]) -> None:
    """The cosine runs from step 0 on, so the rate falls in one step where the warm-up ends."""
    schedule = PHASES[name].schedule
    assert schedule.rate_at(0) == 1e-6
    assert schedule.rate_at(schedule.warmup - 1) == pytest.approx(jump[0], rel=3e-3)
    assert schedule.rate_at(schedule.warmup) == pytest.approx(jump[1], rel=5e-3)
    assert schedule.rate_at(schedule.steps) == schedule.min_rate
    assert (schedule.steps, schedule.batch) == {"vl-1": (12500, 32), "vl-2": (3000, 4), "al-1": (25000, 32), "al-2": (3000, 4)}[
        name
    ]


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_what_learns_and_what_decays(branch: str) -> None:
    task = Branch(stand_in(), branch)
    learns = {name.removeprefix("model.").split(".")[0] for name, p in task.named_parameters() if p.requires_grad}
    assert learns == set(PARTS[branch])
    decays, still = recipe.parameter_groups(task, 0.05)
    assert (decays["weight_decay"], still["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in task.named_parameters()}
    assert any("query_tokens" in names[id(p)] for p in decays["params"])
    assert any("position" in names[id(p)] for p in decays["params"])
    assert all(p.ndim == 1 for p in still["params"])
    assert len(decays["params"]) + len(still["params"]) == sum(p.requires_grad for p in task.parameters())


@pytest.mark.parametrize("branch", ["video", "audio"])
@pytest.mark.parametrize("style", ["caption", "multi"])
def test_losses_and_gradients_are_the_originals(tiny_folder: Path, full: Numbers, branch: str, style: str) -> None:
    """The audio branch is given the frames that the video branch is given, and sees them with ImageBind's eye."""
    tiny = load(tiny_folder, device="cpu")
    if branch == "audio":
        tiny.config.vision_config.image_size = tiny.config.imagebind_config.vision.image_size  # the reference's differ
    task = Branch(tiny, branch).train(False)
    prompts = caption_prompts(full, branch, 0) if style == "caption" else instruction_prompts(full, branch)
    stored = full["inputs.train_images" if branch == "video" else "inputs.train_ib_images"]
    loss = task(groups=[{"prompt": prompts, "frames": rearrange(stored, "b c t h w -> b t c h w")}])["loss"]
    close(loss.reshape(1), full[f"outputs.train_{style}_{kind(branch)}.loss"])
    loss.backward()
    if style == "caption":
        for key in GRADIENTS[branch]:
            close(tiny.get_parameter(_our_name(key)).grad, full[f"outputs.train_caption_{kind(branch)}.grad.{key}"])
    assert all(p.grad is None for name, p in tiny.named_parameters() if name.split(".")[0] not in PARTS[branch])


def test_groups_weigh_as_one_batch(tiny_folder: Path, full: Numbers) -> None:
    """Stills and videos do not make one tensor; their loss is still the mean over all learnt tokens."""
    task = Branch(load(tiny_folder, device="cpu"), "video").train(False)
    prompts = caption_prompts(full, "video", 0)
    frames = rearrange(full["inputs.train_images"], "b c t h w -> b t c h w")
    whole = task(groups=[{"prompt": prompts, "frames": frames}])["loss"]
    parts = task(groups=[{"prompt": [p], "frames": f[None]} for p, f in zip(prompts, frames, strict=True)])["loss"]
    close(parts.reshape(1), whole.reshape(1), 1e-6)
    nothing = task(groups=[], problems=[datasets.Problem("x", "y")])["loss"]
    assert nothing.item() == 0
    nothing.backward()  # reaches what learns, though there was nothing to learn
    assert list(task.problems) == ["x"]


def test_most_clips_unreadable_is_an_error() -> None:
    task = Branch(stand_in(), "video")
    with pytest.raises(VltError, match="101 clips could not be used, and 0 could; the last: row 100: gone"):
        task(groups=[], problems=[datasets.Problem(f"row {i}", "gone") for i in range(101)])


class Noisy(nn.Module):
    """A small task with dropout: its end depends on the state of the random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layers(self.frozen(x)) - x.sum(dim=1, keepdim=True)).square().mean()}


class Numbered(torch.utils.data.Dataset):
    """Examples that tell when they were asked for."""

    def __init__(self, stop_at: int = -1) -> None:
        self.stop_at, self.asked = stop_at, []

    def __len__(self) -> int:
        return 12 * 3

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if i == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(i)
        return {"x": torch.randn(5, generator=torch.Generator().manual_seed(i))}


def test_cut_off_training_comes_to_the_same_end(tmp_path: Path) -> None:
    schedule = Schedule(12, 3, 1e-2, 1e-3, 1e-4, 3)
    whole = Noisy()
    recipe.fit(whole, Numbered(), schedule, tmp_path / "whole", save_every=5, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        recipe.fit(Noisy(), Numbered(stop_at=24), schedule, tmp_path / "cut", save_every=5, quiet=True)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["checkpoint-5"]
    again, rest = Noisy(), Numbered()
    log = recipe.fit(again, rest, schedule, tmp_path / "cut", save_every=5, quiet=True)
    assert rest.asked[0] == 15  # what was done is not done again
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(Noisy().layers[0].weight, again.layers[0].weight)
    assert log


def test_checkpoints_hold_what_learns(tmp_path: Path) -> None:
    schedule = Schedule(2, 3, 1e-2, 1e-3, 1e-4, 1)
    recipe.fit(Noisy(), Numbered(), schedule, tmp_path, save_every=2, quiet=True)
    weights = load_file(tmp_path / "checkpoint-2" / recipe.WEIGHTS)
    assert set(weights) == {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}
    with pytest.raises(VltError, match="written by other training than this: 6 weights differ, such as bias"):
        recipe.take_in(nn.Linear(2, 2), tmp_path / "checkpoint-2" / recipe.WEIGHTS)
    wider = Noisy()
    wider.layers[2] = nn.Linear(7, 2)
    before = [p.clone() for p in wider.parameters()]
    with pytest.raises(VltError, match=r"written by other training than this: 2 weights differ, such as layers\.2\.bias"):
        recipe.take_in(wider, tmp_path / "checkpoint-2" / recipe.WEIGHTS)
    assert all(torch.equal(p, q) for p, q in zip(wider.parameters(), before, strict=True))
    with pytest.raises(VltError, match=r"nothing\.safetensors: cannot be opened"):
        recipe.take_in(nn.Linear(2, 2), tmp_path / "nothing.safetensors")


def test_a_log_travels_with_the_weights(tmp_path: Path) -> None:
    task, other = Noisy(), Noisy()
    with torch.no_grad():
        task.layers[0].bias.fill_(7.0)
    recipe.give_out(task, tmp_path / "a.safetensors", {"loss": 0.5})
    assert recipe.take_in(other, tmp_path / "a.safetensors") == {"loss": 0.5}
    assert other.layers[0].bias.unique().tolist() == [7.0]


NINE = Schedule(9, 3, 1e-2, 1e-3, 1e-4, 3)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Noisy]:
    """A work folder with checkpoints of steps 6 and 9, the last; and what was learnt."""
    folder, task = tmp_path_factory.mktemp("nine"), Noisy()
    recipe.fit(task, Numbered(), NINE, folder, save_every=3, quiet=True)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    return folder, task


@pytest.mark.parametrize("left", [None, "", "half", "[1]"])
def test_of_checkpoints_the_last_whole_one_is_used(nine: tuple[Path, Noisy], tmp_path: Path, left: str | None) -> None:
    """The state is written last: where it is missing or broken, the one before goes on, to the same end."""
    shutil.copytree(nine[0], tmp_path / "work")
    assert recipe.last_checkpoint(tmp_path / "work") == str(tmp_path / "work" / "checkpoint-9")
    state = tmp_path / "work" / "checkpoint-9" / "trainer_state.json"
    if left is None:
        state.unlink()
    else:
        state.write_text(state.read_text()[: state.stat().st_size // 2] if left == "half" else left)
    assert recipe.last_checkpoint(tmp_path / "work") == str(tmp_path / "work" / "checkpoint-6")
    again, rest = Noisy(), Numbered()
    recipe.fit(again, rest, NINE, tmp_path / "work", save_every=3, quiet=True)
    assert rest.asked[0] == 18
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), nine[1].parameters(), strict=True))
    assert recipe.last_checkpoint(tmp_path / "work") == str(tmp_path / "work" / "checkpoint-9")


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert recipe.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert recipe.last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["half", "gone"])
def test_a_broken_file_of_weights_says_what_to_do_and_that_helps(nine: tuple[Path, Noisy], tmp_path: Path, damage: str) -> None:
    shutil.copytree(nine[0], tmp_path / "work")
    broken = tmp_path / "work" / "checkpoint-9"
    path = broken / recipe.WEIGHTS
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(VltError, match=f"{path}: cannot be opened: .*; remove {broken} to do its work again") as raised:
        recipe.fit(Noisy(), Numbered(), NINE, tmp_path / "work", save_every=3, quiet=True)
    assert "\n" not in str(raised.value)
    shutil.rmtree(broken)
    again = Noisy()
    recipe.fit(again, Numbered(), NINE, tmp_path / "work", save_every=3, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), nine[1].parameters(), strict=True))


def test_half_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.safetensors"
    recipe.give_out(Noisy(), path, {"loss": 0.5})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VltError, match=f"{path}: cannot be opened: .*; remove it to do its work again") as raised:
        recipe.take_in(Noisy(), path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_what_learns_keeps_full_precision_in_a_model_in_half(branch: str) -> None:
    model = stand_in(torch.bfloat16)
    task = Branch(model, branch).train()
    prompt = supervision.tokenise(supervision.caption("a dog", branch), model.tokenizer)
    frames = torch.randn(1, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(groups=[{"prompt": [prompt], "frames": frames}])["loss"]
    assert torch.isfinite(loss)
    loss.backward()
    for name, p in model.named_parameters():
        learns = name.split(".")[0] in PARTS[branch]
        assert p.dtype == (torch.float32 if learns else torch.bfloat16), name
        assert p.requires_grad == learns, name
        assert (p.grad is not None) == learns, name
        assert p.grad is None or (p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all()), name
    assert any(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)


def test_fingerprints_tell_weights_apart() -> None:
    """Of every kind of weights: a scale without axes, and half precision."""
    first, second = stand_in(), stand_in()
    first.requires_grad_(False)
    second.requires_grad_(False)
    assert recipe.fingerprint(first) == recipe.fingerprint(second)
    with torch.no_grad():
        second.imagebind.trunk("text").log_scale += 1
    assert recipe.fingerprint(first) != recipe.fingerprint(second)
    assert recipe.fingerprint(first) != recipe.fingerprint(stand_in(torch.bfloat16))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, media) -> Path:
    """A small file of each format, with its media: one clip that is none, one row that is broken."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "clips" / "a").mkdir(parents=True)
    (folder / "pictures").mkdir()
    for i in range(3):
        shutil.copy(media("short.mp4", seconds=1.5, sound=None), folder / "clips" / "a" / f"{i}.mp4")
        Image.new("RGB", (40, 30), (80 * i, 10, 200)).save(folder / "pictures" / f"{i}.jpg")
    (folder / "clips" / "a" / "9.mp4").write_bytes(b"no video at all")
    rows = [*((str(i), f"A dog no. {i}!", "a") for i in (0, 1, 2, 9)), ("3", "", "a")]
    (folder / "webvid.csv").write_text("\n".join(",".join(row) for row in [("videoid", "name", "page_dir"), *rows]))
    captions = {"annotations": [{"image_id": str(i), "caption": f"a picture {i}"} for i in range(3)]}
    (folder / "captions.json").write_text(json.dumps(captions))
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A colour."}]
    (folder / "llava.json").write_text(json.dumps([{"image": f"{i}.jpg", "conversations": said} for i in range(3)]))
    asked = [{"q": "Where?", "a": "Here."}, {"q": "When?", "a": "Now."}]
    (folder / "videochat.json").write_text(json.dumps([{"video": f"a/{i}.mp4", "QA": asked} for i in (0, 1, 2, 9)]))
    return folder


SOURCES = {
    "captions": [("webvid.csv", "clips", 3), ("captions.json", "pictures", 1)],
    "instructions": [("captions.json", "pictures", 1), ("llava.json", "pictures", 1), ("videochat.json", "clips", 2)],
}


def sources(files: Path, purpose: str) -> list[Source]:
    return [Source(files / name, files / folder, ratio) for name, folder, ratio in SOURCES[purpose]]


@pytest.mark.parametrize("name", PHASES)
def test_phases_on_files(name: str, files: Path, tmp_path: Path) -> None:
    phase, model, told = PHASES[name], stand_in(), []
    before = {n: p.clone() for n, p in model.named_parameters()}
    report = recipe.train(
        name, model, sources(files, phase.purpose), tmp_path, schedule=SHORT, say=told.append, quiet=True, save_every=2
    )
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(PARTS[phase.branch])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sum("rows" in line for line in told) == len(SOURCES[phase.purpose])
    assert len(report.broken) == (1 if phase.purpose == "captions" else 0)
    assert [p.source.split(", row")[0] for p in report.unreadable] == [
        Path(SOURCES[phase.purpose][0 if "1" in name else 2][0]).name
    ]
    kept = [json.loads(line) for line in (tmp_path / recipe.PROBLEMS).read_text().splitlines()]
    assert sorted(row["what"] for row in kept) == sorted(["clip"] + ["row"] * len(report.broken))
    assert told[-1].startswith("1 clips could not be used: see ")
    assert json.loads((tmp_path / recipe.SETTINGS).read_text())["phase"] == name
    assert report.log[0]["loss"] > 0


START = {"name": "vl-1", "seed": 3, "schedule": SHORT, "quiet": True, "save_every": 2, "say": lambda _: None}


@pytest.fixture(scope="module")
def begun(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoLlama, recipe.Report]:
    """A work folder that has come to its end, what was learnt, and the report."""
    folder, model = tmp_path_factory.mktemp("begun") / "work", stand_in()
    report = recipe.train(model=model, sources=sources(files, "captions"), work=folder, **START)
    assert (folder / "checkpoint-2").is_dir()
    return folder, model, report


def went_on(begun: tuple[Path, VideoLlama, recipe.Report], files: Path, work: Path) -> recipe.Report:
    """The same training, from step 2 on."""
    shutil.copytree(begun[0], work)
    shutil.rmtree(work / "checkpoint-4")
    asked: list[int] = []
    model, place = stand_in(), datasets.Mixture.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Mixture, "place", lambda self, i: asked.append(i) or place(self, i))
        report = recipe.train(model=model, sources=sources(files, "captions"), work=work, **START)
    assert sorted(asked) == [4, 5, 6, 7]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), begun[1].parameters(), strict=True))
    return report


def test_the_same_training_goes_on(begun: tuple[Path, VideoLlama, recipe.Report], files: Path, tmp_path: Path) -> None:
    report = went_on(begun, files, tmp_path / "work")
    assert report.unreadable == begun[2].unreadable
    assert report.n_rows == begun[2].n_rows


OTHER = {
    "seed": ({"seed": 4}, "seed 3, not 4"),
    "phase": ({"name": "al-1"}, 'phase "vl-1", not "al-1"'),
    "data": ({"sources": 1}, r"files \[\[.*webvid.csv.*\]\], not \[\[.*\]\]"),
    "ratio": ({"ratio": 2}, r"files \[\[.*, 3, 4\].*\], not \[\[.*, 2, 4\].*"),
    "steps": ({"schedule": dataclasses.replace(SHORT, steps=5)}, "steps 4, not 5"),
    "batch": ({"schedule": dataclasses.replace(SHORT, batch=3, steps=5)}, "batch 2, not 3"),
    "rate": ({"schedule": dataclasses.replace(SHORT, rate=2e-2)}, "rate 0.01, not 0.02"),
    "start": ({"weight": 1.0}, 'start "[0-9a-f]{16}", not "[0-9a-f]{16}"'),
    "processes": ({"processes": "2"}, "processes 1, not 2"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_work_folder_of_other_training_is_refused(
    begun: tuple[Path, VideoLlama, recipe.Report], files: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The message names the first thing that differs, and the folder stays as it was."""
    changes, message = OTHER[name]
    model, rows = stand_in(), sources(files, "captions")
    given = {**START, **changes}
    if "sources" in changes:
        rows = rows[: given.pop("sources")]
    if "ratio" in changes:
        rows[0] = dataclasses.replace(rows[0], ratio=given.pop("ratio"))
    if "weight" in changes:
        with torch.no_grad():
            model.video_projection.weight[0, 0] += given.pop("weight")
    if "processes" in changes:
        monkeypatch.setenv("WORLD_SIZE", given.pop("processes"))
    before = {p: p.stat().st_mtime_ns for p in begun[0].rglob("*")}
    monkeypatch.setattr(recipe, "fit", lambda *_, **__: pytest.fail("training went on"))
    expected = f"^{begun[0]}: holds unfinished training with {message}; finish that, or give another folder$"
    with pytest.raises(VltError, match=expected):
        recipe.train(model=model, sources=rows, work=begun[0], **given)
    assert {p: p.stat().st_mtime_ns for p in begun[0].rglob("*")} == before


def test_settings_of_a_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    recipe.same_settings(tmp_path / "a", {"seed": 1})
    assert not (tmp_path / "a").exists()  # another process writes them
    monkeypatch.delenv("RANK")
    recipe.same_settings(tmp_path / "a", {"seed": 1, "files": [("x", 2)]})
    recipe.same_settings(tmp_path / "a", {"files": [("x", 2)], "seed": 1})
    for other, told in (
        ({"seed": 2, "files": [("x", 3)]}, r'files \[\["x", 2\]\], not \[\["x", 3\]\]'),
        ({"seed": 1}, r'files \[\["x", 2\]\], not null'),
        ({"seed": 1, "files": [("x", 2)], "rate": 0.5}, "rate null, not 0.5"),
    ):
        with pytest.raises(VltError, match=f"a: holds unfinished training with {told}; finish that, or give another folder"):
            recipe.same_settings(tmp_path / "a", other)
    (tmp_path / "a" / recipe.SETTINGS).write_text("{")
    with pytest.raises(VltError, match=r"settings\.json: cannot be read as JSON"):
        recipe.same_settings(tmp_path / "a", {"seed": 1})


def test_earlier_problems_do_not_end_what_goes_on(
    begun: tuple[Path, VideoLlama, recipe.Report], files: Path, tmp_path: Path
) -> None:
    """Whether most clips are unusable is asked of the clips of this run."""
    shutil.copytree(begun[0], tmp_path / "before")
    path = tmp_path / "before" / recipe.PROBLEMS
    earlier = [{"what": "clip", "source": f"old.csv, row {i}", "reason": "gone"} for i in range(150)]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in earlier))
    report = went_on((tmp_path / "before", *begun[1:]), files, tmp_path / "work")
    assert {p.source for p in report.unreadable} == {row["source"] for row in earlier} | {"webvid.csv, row 4"}
    kept = [json.loads(line) for line in (tmp_path / "work" / recipe.PROBLEMS).read_text().splitlines()]
    assert sum(row["what"] == "clip" for row in kept) == 151
    assert sum(row["what"] == "row" for row in kept) == 1  # told anew, not twice


def test_several_processes_share_the_work(files: Path, tmp_path: Path) -> None:
    """Two on the processor: each takes other examples, both come to the same weights, and one writes them."""
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    except OSError as error:
        pytest.skip(f"two processes speak through sockets, and none may be opened here ({error})")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.one_of_several", str(files), str(tmp_path)]
    started = [
        subprocess.Popen(
            command, env=os.environ | common | {"RANK": r, "LOCAL_RANK": r}, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for r in "01"
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in "01")
    assert (first["asked"], second["asked"]) == ([0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15])
    assert first["end"] == second["end"] != first["start"] == second["start"]
    assert sorted(first["written"]) == ["model.safetensors", "model.safetensors", "problems.jsonl", "settings.json"]
    assert second["written"] == ["1-problems.jsonl"]
    alone = stand_in()
    recipe.take_in(Branch(alone, "video"), tmp_path / "work" / "checkpoint-4" / recipe.WEIGHTS)
    assert recipe.fingerprint(alone) == first["end"]


def test_a_branch_that_is_not_there(files: Path, tmp_path: Path) -> None:
    model = stand_in()
    with pytest.raises(VltError, match="no phase 'vl-3'"):
        recipe.train("vl-3", model, [], tmp_path)
    deaf = VideoLlama._from_config(
        type(model.config)(**{**model.config.to_dict(), "imagebind_config": None, "audio_qformer_config": None})
    )
    with pytest.raises(VltError, match="no branch 'audio'; it has: video"):
        deaf.tokenizer = model.tokenizer
        recipe.train("al-1", deaf, sources(files, "captions"), tmp_path, say=lambda _: None)


def test_the_audio_branch_needs_frames_of_its_eyes_size(tiny_folder: Path) -> None:
    with pytest.raises(VltError, match="42 pixels; ImageBind's vision trunk wants 28"):
        Branch(load(tiny_folder, device="cpu"), "audio")


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlt.cli", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_command(files: Path, tmp_path: Path) -> None:
    """One phase from the command line, readers in processes of their own; then the same again, from what its work folder holds."""
    model = stand_in()
    model.save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--batch", 2, "--workers", 1]
    for name, folder, ratio in SOURCES["instructions"]:
        options += ["--data", files / name, "--media", files / folder, "--ratio", ratio]
    done = run_cli("al-2", tmp_path / "out", *options, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert "videochat.json: 4 rows, 0 broken" in done.stderr
    assert "1 clips could not be used" in done.stderr
    assert done.stdout == f"{tmp_path / 'out'}: open it with vlt.load({str(tmp_path / 'out')!r})\n"  # no progress, no losses
    trained = load(tmp_path / "out", device="cpu")
    moved = {n.split(".")[0] for n, p in trained.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == set(PARTS["audio"])
    again = run_cli("al-2", tmp_path / "again", *options, "--steps", 6, "--work", tmp_path / "out.work")
    assert again.returncode == 0, again.stderr
    for name, p in load(tmp_path / "again", device="cpu").named_parameters():
        assert torch.equal(p, trained.get_parameter(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "{}/llava.json", "--media", "{}/pictures", "--media", "{}/clips"],
            "1 --data, 2 --media and 0 --ratio; give one of each",
        ),
        (["--data", "{}/llava.json", "--media", "{}/pictures"], "pre-training"),
        (["--data", "{}/nothing.csv", "--media", "{}/pictures"], "nothing.csv"),
    ],
)
def test_command_refuses_in_one_line(files: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    stand_in().save_pretrained(tmp_path / "model")
    given = [argument.format(files) for argument in arguments]
    done = here("train", "vl-1", tmp_path / "out", "--model", tmp_path / "model", *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("vlt: ")
    assert not (tmp_path / "out").exists()


class Given:
    """Stands for a model that was opened; saves nothing."""

    def save_pretrained(self, folder: Path) -> None:
        pass


def schedule_of(name: str, files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Schedule:
    """What the command line gives to `recipe.train`."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(loading, "load", lambda *_, **__: Given())
    monkeypatch.setattr(recipe, "train", lambda *args, **kwargs: given.append({"name": args[0], **kwargs}))
    purpose = PHASES[name].purpose
    data, media, _ = SOURCES[purpose][0]
    arguments = [
        "train",
        name,
        str(folder / "out"),
        "--model",
        "any",
        "--data",
        str(files / data),
        "--media",
        str(files / media),
    ]
    done = CliRunner().invoke(cli.app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    [one] = given
    assert one["name"] == name
    return one["schedule"]


@pytest.mark.parametrize("name", PHASES)
def test_the_commands_own_schedule_is_the_originals(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PHASES[name].schedule
    assert schedule_of(name, files, tmp_path, monkeypatch) == original
    assert schedule_of(name, files, tmp_path, monkeypatch, "--batch", "3") == dataclasses.replace(original, batch=3)
    steps = str(original.steps)
    expected = dataclasses.replace(original, warmup=min(original.warmup, original.steps // 5))
    assert schedule_of(name, files, tmp_path, monkeypatch, "--steps", steps) == expected
    expected = dataclasses.replace(original, steps=100, warmup=20)
    assert schedule_of(name, files, tmp_path, monkeypatch, "--steps", "100") == expected
    assert schedule_of(name, files, tmp_path, monkeypatch, "--steps", "1000000").warmup == original.warmup
