"""The command line as people use it: `vlt ...` in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

from tests.conftest import CHECKPOINTS, REFERENCE
from vlt import cli
from vlt.cli import look
from vlt.inputs.clip import Clip
from vlt.model import box, stages
from vlt.model.load import load
from vlt.probe import edits
from vlt.probe.sweep import ABLATIONS, ablations, sweep
from vlt.probe.trace import trace

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "data" / "clips" / "two_bell.mp4"


def vlt(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


def test_help_does_not_wait_for_torch() -> None:
    """What vlt is made of takes seconds to import."""
    code = """import atexit, sys, vlt.cli
atexit.register(lambda: print({"torch", "transformers", "numpy", "matplotlib"} & {*sys.modules}, dir(vlt)))
sys.argv = ["vlt", "explain", "--help"]
vlt.cli.main()"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout
    assert "--rather" in said and "set() ['Clip', 'Probe'" in said
    code = "import vlt; print(vlt.load.__module__, vlt.view.figures.__name__, vlt.VltError.__name__); vlt.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "vlt.model.load vlt.view.figures VltError\n"
    assert done.stderr.endswith("AttributeError: module 'vlt' has no attribute 'nothing'\n")


def here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported already what takes seconds."""
    command = ["vlt", *map(str, arguments)]
    said, told = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(told),
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    code = ended.value.code
    return subprocess.CompletedProcess(command, code if isinstance(code, int) else 0, said.getvalue(), told.getvalue())


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """One clear line on standard error, nothing else, exit code 2."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr, done.stderr


def test_probe(tmp_path: Path) -> None:
    done = vlt("probe", CLIP, "--ask", "What do you hear?", "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["clip"]["kind"] == "video"
    assert result["clip"]["sound"]["state"] == "there"
    assert [row["name"] for row in result["stages"]] == list(stages.TENSOR_STAGES)
    for row in result["stages"]:
        assert row["axes"] == list(stages.STAGES[row["name"]].axes)
        assert len(row["shape"]) == len(row["axes"])
        assert row["ms"] >= 0
        assert f"{row['name']} " in done.stdout
    assert result["stages"][0]["shape"] == [1, 8, 3, 64, 64]
    assert "".join(result["tokens"]).removesuffix("###").strip() == result["answer"] == "I hear a bell."
    assert "answer  I hear a bell." in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_the_demo_answers_as_the_readme_says() -> None:
    """The README's answer is the last line of what the Makefile's command prints."""
    command = re.search(r"^demo: .*\n\t\$\(BIN\)/vlt (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = re.search(r"`make demo` ends with\n\n```text\n(.*)\n```", (ROOT / "README.md").read_text())
    assert command and shown
    clip = re.search(r"^CLIP := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert clip and clip[1] in (ROOT / "README.md").read_text()
    arguments = shlex.split(command[1].replace("$(CLIP)", str(ROOT / clip[1])))
    assert vlt(*arguments).stdout.strip().splitlines()[-1] == shown[1]


def test_probe_is_repeatable(tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        vlt("probe", CLIP, "--ask", "What?", "--json", tmp_path / name, "--max-new-tokens", 4, "--sample", "--seed", 3)
        results.append(json.loads((tmp_path / name).read_text()))
    assert results[0]["tokens"] == results[1]["tokens"]


def test_probe_with_one_branch(tmp_path: Path) -> None:
    here("probe", CLIP, "--branch", "audio", "--json", tmp_path / "run.json", "--max-new-tokens", 1)
    names = [row["name"] for row in json.loads((tmp_path / "run.json").read_text())["stages"]]
    assert "frames" not in names
    assert "spectrograms" in names


@pytest.mark.parametrize(
    ("kind", "options", "first"),
    [
        ("silent.mp4", {"sound": None}, "frames"),
        ("one.mp4", {"sound": None, "frames": 1}, "frames"),
        ("pixel.mp4", {"sound": None, "size": (1, 1), "pixels": "yuv444p"}, "frames"),
        ("odd.mp4", {"size": (97, 61), "pixels": "yuv444p"}, "frames"),
        ("varied.mp4", {"sound": None, "frames": 4, "stamps": [0, 1, 9, 10]}, "frames"),
        ("tenth.wav", {"size": None, "sound": "pcm_s16le", "seconds": 0.1}, "spectrograms"),
    ],
)
def test_unusual_clips_are_answered(media, tmp_path: Path, kind: str, options: dict, first: str) -> None:
    done = here("probe", media(kind, **options), "--json", tmp_path / "run.json", "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["stages"][0]["name"] == first
    assert told["note"].startswith("the box: it knows one small world") and told["note"] in done.stdout


def bad_files(folder: Path, media) -> dict[str, tuple[Path, str]]:
    whole = media("a.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("words\n" * 50)
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "new\nline.mp4").write_text("x")
    return {
        "none": (folder / "none.mp4", "no such file"),
        "directory": (folder, "is a directory"),
        "empty": (folder / "empty.mp4", "is empty"),
        "text": (folder / "text.mp4", "cannot be read"),
        "cut": (folder / "cut.mp4", "cannot be read"),
        "name": (folder / "new\nline.mp4", "cannot be read"),
    }


@pytest.mark.parametrize("name", ["none", "directory", "empty", "text", "cut", "name"])
def test_bad_clips(media, tmp_path: Path, name: str) -> None:
    path, message = bad_files(tmp_path, media)[name]
    before = sorted(p.name for p in tmp_path.iterdir())
    run = vlt if name in ("text", "cut") else here  # what libraries write by themselves is seen from outside only
    refused(run("probe", path, "--json", tmp_path / "run.json"), message)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere/at/all"], "no such folder"),
        (["--seed", "3"], "--seed 3: nothing is drawn without --sample"),
        (["--branch", "vidio"], "no branch 'vidio'; nearest: video"),
        (["--coverage", "hole"], "no coverage 'hole'; nearest: whole"),
        (["--n-frames", "40"], "40 frames were asked for"),
        (["--json", "missing/folder/run.json"], "give a file in a folder that exists"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path) -> None:
    refused(here("probe", CLIP, *options, cwd=tmp_path), message)
    assert list(tmp_path.iterdir()) == []


def test_the_clip_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP.read_bytes())
    refused(here("probe", tmp_path / "a.mp4", "--json", tmp_path / "a.mp4"), "is the clip itself")
    assert (tmp_path / "a.mp4").read_bytes() == CLIP.read_bytes()


def test_a_name_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m:cat:.mp4"
    path.write_bytes(CLIP.read_bytes())
    done = here("probe", path, "--max-new-tokens", 1)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert ":cat:" in done.stdout
    path.write_bytes(b"x")
    done = here("probe", path)
    refused(done, ":cat:")
    assert "\x1b" not in done.stderr


def test_the_box_says_what_it_does_not_know(tmp_path: Path) -> None:
    own, strange = Path(__file__).parents[1] / "data" / "clips" / "bell.mp4", tmp_path / "dog.mp4"
    assert box.limits("box", own, "What do you hear?") == box.limits("box", own, "what do you hear?") == ""
    assert box.limits("box", own, "WHAT DO YOU HEAR?").startswith("the box: it has not learnt this question")
    assert "one small world" in (told := box.limits("box", strange, "What do you hear?")) and "question" not in told
    assert box.limits("a/model", strange, "Why?") == ""


def test_sweep(tmp_path: Path) -> None:
    saved, kept = tmp_path / "later.json", tmp_path / "kept.jsonl"
    saved.write_text(edits.dumps(edits.shift(8.0)))
    asked = ("sweep", CLIP, "--ask", "What do you hear?", "--ablate", "audio,reverse", "--edits", saved, "--candidate",
             "I hear a hum.", "--keep", kept, "--json", tmp_path / "table.json", "--figure", tmp_path / "table.svg")  # fmt: skip
    done = here(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "table.json").read_text())
    assert told["question"] == "What do you hear?" and told["model"] == "box" and told["clip"] == str(CLIP)
    rows = {row["name"]: row for row in told["sweep"]}
    run = trace(load(), Clip(CLIP), "What do you hear?")
    table = sweep(
        run, ablations(["audio", "reverse"]) | {"later": edits.shift(8.0)}, candidates=["I hear a hum."], progress=False
    )
    assert list(rows) == list(table.index) and len(kept.read_text().splitlines()) == 4
    for name, row in table.iterrows():
        assert rows[name]["answer"] == row["answer"] and rows[name]["change"] == pytest.approx(row["change"], abs=1e-4)
        assert rows[name]["I hear a hum."] == pytest.approx(row["I hear a hum."], abs=1e-4)
    assert done.stderr == ""
    assert [rows[name]["edits"] for name in ("audio", "later")] == ["without(branch='audio')", "shift(seconds=8.0)"]
    assert "shift(seconds=8.0)" in done.stdout and "<svg" in (tmp_path / "table.svg").read_text()
    before = kept.read_bytes()
    assert here(*asked).returncode == 0 and kept.read_bytes() == before  # nothing is made again


def test_sweep_names_what_can_be_taken_away() -> None:
    assert look.ABLATIONS.split(", ") == list(ABLATIONS)
    refused(here("sweep", CLIP, "--ablate", "sound"), "no ablation 'sound'; all: video, audio, blank")
    refused(here("sweep", CLIP, "--edits", "gone.json"), "gone.json: [Errno 2] No such file")


def test_stages() -> None:
    done = here("stages")
    assert done.returncode == 0
    for stage in stages.STAGES.values():
        assert stage.name in done.stdout
        assert stage.about.split()[0] in done.stdout
    rows = json.loads(here("stages", "--json").stdout)
    assert [row["name"] for row in rows] == list(stages.STAGES)
    assert next(row for row in rows if row["name"] == "patches")["sizes"] == "clip, frame 1 to 32, patch 65, vision width 96"


def test_convert_and_probe(llm_folder: Path, tmp_path: Path, media) -> None:
    files = [f"--{option}={REFERENCE / 'checkpoints' / name}" for option, name in CHECKPOINTS.items()]
    done = vlt("convert", *files, "--llm", llm_folder, "--sizes", REFERENCE / "config.json", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "--vision overrides 2 tensors of --minigpt4" in done.stdout
    assert "BLIP-2's projection to T5" in done.stdout
    answer = here("probe", media("a.mp4"), "--model", tmp_path / "model", "--max-new-tokens", 3)
    assert answer.returncode == 0, answer.stderr
    shown = json.loads(here("stages", "--json", "--model", tmp_path / "model").stdout)
    assert next(row for row in shown if row["name"] == "patches")["sizes"].endswith("vision width 40")


def test_convert_refuses(llm_folder: Path, tmp_path: Path) -> None:
    folder = REFERENCE / "checkpoints"
    swapped = {**CHECKPOINTS, "vision": CHECKPOINTS["audio"]}
    files = [f"--{option}={folder / name}" for option, name in swapped.items()]
    done = here("convert", *files, "--llm", llm_folder, "--sizes", REFERENCE / "config.json", tmp_path / "model")
    refused(done, "give it as --audio")
    assert list(tmp_path.iterdir()) == []
