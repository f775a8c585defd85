"""The loop, the paper's four phases on files, and that training which was cut off comes to the same end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Numbers, close, stand_in
from tests.model.test_reference import GRADIENTS, caption_prompts, instruction_prompts, kind
from vlt.errors import VltError
from vlt.model.checkpoints import _our_name
from vlt.model.load import load
from vlt.model.video_llama import VideoLlama
from vlt.train import datasets, recipe
from vlt.train.branches import PARTS, Branch
from vlt.train.recipe import PHASES, Schedule, Source

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
    with pytest.raises(VltError, match="101 clips could not be read, and 0 could; the last: row 100: gone"):
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
    with pytest.raises(VltError, match="written by other training than this: 6 names differ"):
        recipe.take_in(nn.Linear(2, 2), tmp_path / "checkpoint-2" / recipe.WEIGHTS)
    with pytest.raises(VltError, match=r"nothing\.safetensors: cannot be opened"):
        recipe.take_in(nn.Linear(2, 2), tmp_path / "nothing.safetensors")


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
    assert "could not be read" in told[-1]
    assert report.log[0]["loss"] > 0


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
    """One phase from the command line, readers in processes of their own; then it goes on where it was."""
    model = stand_in()
    model.save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--batch", 2, "--workers", 1]
    for name, folder, ratio in SOURCES["instructions"]:
        options += ["--data", files / name, "--media", files / folder, "--ratio", ratio]
    done = run_cli("al-2", tmp_path / "out", *options, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert "videochat.json: 4 rows, 0 broken" in done.stderr
    assert "1 clips could not be read" in done.stderr
    assert "vlt.load(" in done.stdout
    trained = load(tmp_path / "out", device="cpu")
    moved = {n.split(".")[0] for n, p in trained.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == set(PARTS["audio"])


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
    done = run_cli("vl-1", tmp_path / "out", "--model", tmp_path / "model", *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("vlt: ")
    assert not (tmp_path / "out").exists()
