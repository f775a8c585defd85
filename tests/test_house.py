"""What the README and the project's files say is true of the project."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from vlt.explain.faithfulness import faithfulness
from vlt.model import stages
from vlt.train import talk

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def tree() -> dict[str, str]:
    """The README's tree: path -> purpose."""
    block = re.search(r"```text\nvlt/\n(.*?)```", README, re.DOTALL)
    assert block, "the README has no tree"
    paths: dict[str, str] = {}
    parents = ["vlt/"]
    for line in ("vlt/\n" + block[1]).splitlines():
        match = re.match(r"^( *)(\S+)(?: {2,}(.*))?$", line)
        assert match, line
        depth = len(match[1]) // 4
        parents = [*parents[:depth], match[2]]
        paths["".join(parents)] = match[3] or ""
    return paths


def test_tree_names_every_file_of_the_package() -> None:
    listed = {path for path in tree() if path.startswith("vlt/") and not path.endswith("/")}
    real = {name for name in tracked() if name.startswith("vlt/") and not name.endswith("__init__.py")} | {"vlt/__init__.py"}
    assert listed == real


def test_tree_gives_every_file_a_purpose_and_names_no_other() -> None:
    names = tracked()
    for path, purpose in tree().items():
        assert purpose or path == "vlt/", path
        assert path in names or any(name.startswith(path) for name in names), path


def test_top_level() -> None:
    top = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert {"vlt", "data", "tests", "environment.yml", "README.md", "pyproject.toml", "benchmarks", "LICENSE"} <= top
    described = {path.rstrip("/").split("/")[0] for path in tree()}
    assert {name for name in top if (ROOT / name).is_dir()} <= described


def test_first_lines_of_the_readme() -> None:
    first = "\n".join(README.splitlines()[:25])
    assert "make demo" in first
    assert "make test" in first
    assert "┴► prefix ─► logits ─► answer" in first


def test_stage_table_of_the_readme() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert rows == [(s.name, s.about, ", ".join(s.axes)) for s in stages.STAGES.values() if s.axes]


@pytest.mark.filterwarnings("ignore:box")
def test_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    assert names["backwards"]["video_prefix"].shape == (1, 16, 128)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    told = re.search(r"true\.p  # (no|yes), ([0-9.]+):.*\n.*\.true  # (no|yes):", README)
    assert (
        told
        and told[1] == ("yes" if names["true"].true else "no")
        and float(told[2]) == pytest.approx(names["true"].p, abs=0.1)
    )
    whole = faithfulness(names["heat"], cells={"mel": 128, "time": 204}, progress=False)
    assert told[3] == ("yes" if whole.true else "no")


def rows_of_the_readme(first: str) -> list[tuple[str, list[str]]]:
    """The table under a heading that begins so: the first cell of every row, and the others."""
    table = README[README.index(f"| {first} |") :].split("\n\n")[0]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [(name, rest) for name, *rest in cells]


def test_truth_tables_are_of_their_file() -> None:
    found = pd.DataFrame(json.loads((ROOT / "data" / "box" / "truth.json").read_text()))
    rows = found.set_index(["explained", "question", "way"]).sort_index()

    def cell(explained: str, question: str, way: str, measure: str) -> str:
        value = rows[measure].get((explained, question, way), float("nan"))
        return "-" if value != value else f"{value:.2f}"

    kinds, last = ["shape", "colour", "motion", "hear", "source"], ""
    for way, cells in rows_of_the_readme("way | shape"):
        last, measure = (last, "chance") if way == "chance" else (way, "pointing")
        assert cells[:5] == [cell("model", kind, last, measure) for kind in kinds], way
        if way != "chance":
            true = " / ".join(cell("model", asked, way, "beats") for asked in ("looking", "listening"))
            both = found[(found["explained"] == "model") & (found["way"] == way)].set_index("question")
            passes = (both["forwards"] + both["backwards"]).reindex(["looking", "listening"])
            passes = " / ".join("-" if value != value else f"{value:.0f}" for value in passes)
            assert cells[5:] == [cell("model", "looking", way, "distractor"), true, passes], way
    measured = [(sort, "looking", "which") for sort in ("model", "random weights")]
    measured += [(sort, "listening", "pointing") for sort in ("model", "random weights", "sound swapped")]
    measured += [("sound swapped", "listening", "distractor")]
    measured += [(sort, asked, "sound") for sort in ("model", "random weights") for asked in ("looking", "listening")]
    *checks, chance = rows_of_the_readme("way | which thing")
    assert len(checks) == 12 and chance[1][:6] == ["0.50", "0.50", *["0.12"] * 4]
    for way, cells in checks:
        assert cells == [cell(sort, asked, way, measure) for sort, asked, measure in measured], way


def test_ablation_table_is_of_its_file() -> None:
    found = pd.DataFrame(json.loads((ROOT / "data" / "box" / "evaluation.json").read_text()))
    found["correct"] = found["right"] * found["n"]
    conditions = ["no video", "no sound", "frame positions removed", "frames reversed", "segment positions removed"]
    for question, cells in rows_of_the_readme("question | one object"):
        asked = found[found["question"] == question]
        full = asked[asked["condition"] == "full"].set_index("objects")["right"]
        sums = asked.groupby("condition")[["correct", "n"]].sum()
        shares = [full[1], full[2], *(sums["correct"] / sums["n"])[conditions]]
        assert cells == [f"{share:.2f}" for share in shares], question


def test_questions_that_the_box_knows_are_told() -> None:
    card = (ROOT / "data" / "box" / "README.md").read_text()
    for kind, (plain, *_) in talk.ASKED.items():
        question = plain.format(shape="circle", colour="red")
        assert f"| {kind} | {question} |" in card
        assert kind == "voice" or f"*{question}*" in README


def test_environment_follows_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PYPROJECT["project"]["name"]
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert f"python{PYPROJECT['project']['requires-python']}" in conda
    assert pip == ["-c constraints.txt", "-e .[dev]"]  # so the one list stays pyproject's
    assert set(conda) == {f"python{PYPROJECT['project']['requires-python']}", "pip"}


def test_the_asked_for_packages_are_there() -> None:
    names = {re.split(r"[\s>=<;\[]", d)[0] for d in PYPROJECT["project"]["dependencies"]}
    assert {"jupyterlab", "torch", "transformers", "matplotlib", "ipywidgets", "librosa", "decord", "captum"} <= names


def test_constraints_pin_what_is_installed() -> None:
    from importlib.metadata import version

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, pinned = line.split("==")
            assert version(name).split("+")[0] == pinned


def test_small_files_and_functions() -> None:
    import ast

    for name in tracked():
        if name.startswith("vlt/") and name.endswith(".py"):
            text = (ROOT / name).read_text()
            assert text.count("\n") <= 400, name
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
