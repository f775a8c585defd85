"""Training data in the original's files: what is read, what is refused, and the examples that are made of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.test_supervision import byte_tokenizer, shown
from vlt.errors import VltError
from vlt.inputs import video
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Prompt
from vlt.model.config import VideoLlamaConfig
from vlt.train import datasets
from vlt.train.datasets import Examples, Mixture, Problem, Row

SIZE = 16
LLAVA = {
    "id": "7",
    "image": "000000000007.jpg",
    "conversations": [
        {"from": "human", "value": "What is it?\n<image>"},
        {"from": "gpt", "value": "A slope."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ],
}
VIDEOCHAT = {"video": "0/1.mp4", "QA": [{"i": "", "q": "What moves?", "a": "A square."}, {"q": "How?", "a": "Right."}]}
CAPTION = {"image_id": "GCC_train_1", "caption": "A Slope. (Raw!)"}
WEBVID = "videoid,contentUrl,duration,page_dir,name\n1,https://a,PT00H00M02S,0,A Square!\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, media) -> Path:
    """Media: 0/1.mp4 and 2.mp4 (20 frames), short.mp4 (3), some pictures, text that is called a video."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "0").mkdir()
    shutil.copy(media("train.mp4", sound=None), folder / "0" / "1.mp4")
    shutil.copy(media("train.mp4", sound=None), folder / "2.mp4")
    shutil.copy(media("three.mp4", sound=None, frames=3), folder / "short.mp4")
    shutil.copy(media("train.wav", size=None, sound="pcm_s16le"), folder / "sound.mp4")
    slope = np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8) * 5
    for name in ("GCC_train_1.jpg", "3.jpg", "COCO_train2014_000000000007.jpg"):
        Image.fromarray(slope).convert("RGB").save(folder / name)
    (folder / "text.mp4").write_text("no video")
    shutil.copy(folder / "2.mp4", folder / "moving.jpg")
    shutil.copy(folder / "3.jpg", folder / "still.mp4")
    return folder


def config(**options: Any) -> VideoLlamaConfig:
    sizes = {"vision_config": {"image_size": SIZE}, "audio_qformer_config": {}, "imagebind_config": {}, "trained_frames": 4}
    return VideoLlamaConfig(**{**sizes, **options})


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows_of(tmp_path: Path, folder: Path, content: Any, purpose: str) -> list[Row]:
    rows, problems = datasets.read(written(tmp_path / "any.txt", content), folder, purpose)
    assert problems == []
    return rows


def examples(rows: list[Row], branch: str = "video", seed: int = 0, max_caption: int | None = None, **options: Any) -> Examples:
    return Examples(rows, byte_tokenizer(), config(**options), branch, max_caption, seed)


def made(rows: list[Row], *where: Any, **options: Any) -> dict[str, Any]:
    out = examples(rows, *where, **options)[0]
    assert not isinstance(out, Problem), out
    return out


# What is read


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (WEBVID, "0/1.mp4"),
        (WEBVID.replace(",", "\t"), "0/1.mp4"),
        ("\ufeff" + WEBVID, "0/1.mp4"),
        ("name , videoid\nA Square!,2\n", "2.mp4"),
        ("videoid,page_dir,name\n2,,A Square!\n\n", "2.mp4"),
        ('videoid,name\r\n2,"A\r\nSquare!"\r\n', "2.mp4"),
    ],
)
def test_webvid(tmp_path: Path, folder: Path, content: str, name: str) -> None:
    [row] = rows_of(tmp_path, folder, content, "captions")
    assert row == Row("any.txt", 1, folder, name, "video", "caption", (("", "a square"),))
    assert (row.source, row.media) == ("any.txt, row 1", folder / name)


def test_webvid_in_a_folder_of_tables(tmp_path: Path, folder: Path) -> None:
    written(tmp_path / "b.csv", WEBVID + "2,u,d,,B\n")
    written(tmp_path / "a.tsv", "videoid\tname\n2\tSecond, with a comma\n")
    written(tmp_path / "README.md", "no table")
    rows, problems = datasets.read(tmp_path, folder, "captions")
    assert [(row.source, row.turns[0][1]) for row in rows] == [
        ("a.tsv, row 1", "second, with a comma"),
        ("b.csv, row 1", "a square"),
        ("b.csv, row 2", "b"),
    ]
    assert problems == []
    for name in "hgfedc":
        written(tmp_path / f"{name}.csv", f"videoid,name\n2,{name}\n1,\n")
    rows, problems = datasets.read(tmp_path, folder, "captions")
    assert [row.file[0] for row in rows] == list("abbcdefgh")
    assert [problem.source[0] for problem in problems] == list("cdefgh")
    written(tmp_path / "i.csv", "videoid,name\n,i\n")
    with pytest.raises(VltError, match=r"i\.csv: no row of it can be used \(i\.csv, row 1: 'videoid' is empty\)"):
        datasets.read(tmp_path, folder, "captions")
    for name in tmp_path.glob("*.?sv"):
        name.unlink()
    with pytest.raises(VltError, match=r"no \.csv or \.tsv file is in this folder"):
        datasets.read(tmp_path, folder, "captions")


@pytest.mark.parametrize(
    ("said", "cleaned"),
    [
        ('A Man. Runs! "Fast" (very)*#:;~ away', "a man runs fast very away"),
        ("  two\t words\n", "two words"),
        ("don't, stop? 4k-video & more", "don't, stop? 4k-video & more"),
        (" ".join(f"W{i}" for i in range(60)), " ".join(f"w{i}" for i in range(50))),
    ],
)
def test_webvid_captions_are_cleaned_as_in_the_original(said: str, cleaned: str) -> None:
    assert datasets._cleaned(said) == cleaned


def test_captions_of_pictures_are_raw_and_serve_both_purposes(tmp_path: Path, folder: Path) -> None:
    content = {"annotations": [CAPTION, {"image_id": 3, "caption": " b "}]}
    for purpose, use in (("captions", "caption"), ("instructions", "description")):
        rows = rows_of(tmp_path, folder, content, purpose)
        assert rows == [
            Row("any.txt", 1, folder, "GCC_train_1.jpg", "image", use, (("", "A Slope. (Raw!)"),)),
            Row("any.txt", 2, folder, "3.jpg", "image", use, (("", " b "),)),
        ]


def test_instructions(tmp_path: Path, folder: Path) -> None:
    [row] = rows_of(tmp_path, folder, [LLAVA], "instructions")
    turns = (("What is it?\n<image>", "A slope."), ("Sure?", "Yes."))
    assert row == Row("any.txt", 1, folder, "000000000007.jpg", "image", "conversation", turns)
    assert row.found() == folder / "COCO_train2014_000000000007.jpg"
    [row] = rows_of(tmp_path, folder, [VIDEOCHAT], "instructions")
    turns = (("What moves?", "A square."), ("How?", "Right."))
    assert row == Row("any.txt", 1, folder, "0/1.mp4", "video", "conversation", turns)


def test_a_picture_of_its_own_name_comes_before_cocos(tmp_path: Path) -> None:
    row = Row("f", 1, tmp_path, "in/7.jpg", "image", "conversation", ((("<image> a"), "b"),))
    (tmp_path / "in").mkdir()
    with pytest.raises(VltError, match=r"in/7\.jpg: no such file"):
        row.found()
    (tmp_path / "in" / "COCO_train2014_7.jpg").write_text("a")
    assert row.found() == tmp_path / "in" / "COCO_train2014_7.jpg"
    (tmp_path / "in" / "7.jpg").write_text("a")
    assert row.found() == tmp_path / "in" / "7.jpg"


# What is refused


def llava(**changes: Any) -> dict[str, Any]:
    return {**LLAVA, **changes}


def spoken(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": value} for role, value in said]


BROKEN = [
    (llava(conversations=spoken(("gpt", "<image> a"), ("human", "b"))), "roles are gpt, human; expected human and gpt in turn"),
    (llava(conversations=spoken(("human", "<image> a"))), "roles are human; expected"),
    (
        llava(conversations=spoken(("human", "<image> a"), ("gpt", "b"), ("gpt", "c"), ("gpt", "d"))),
        "roles are human, gpt, gpt, gpt",
    ),
    (llava(conversations=spoken(("human", "a"), ("gpt", "b"))), "<image> stands in it 0 times"),
    (llava(conversations=spoken(("human", "<image><image> a"), ("gpt", "b"))), "<image> stands in it 2 times"),
    (llava(conversations=spoken(("human", "<image> a"), ("gpt", "<image>"))), "<image> stands in it 2 times"),
    (llava(conversations=spoken(("human", "a"), ("gpt", "<image>"))), "expected once, in the first question"),
    (llava(conversations=spoken(("human", " <image>\n"), ("gpt", "b"))), "the first question is empty"),
    (llava(conversations=spoken(("human", "<image> a"), ("gpt", "  "))), "'value' is empty"),
    (llava(conversations=spoken(("human", "<image> a"), ("gpt", 7))), "'value' is a int; expected text"),
    (llava(conversations=spoken(("human", "<image> a"), ("gpt", "b\ud800"))), "'value' holds half a character"),
    (llava(conversations=[]), "'conversations' is missing, empty or no list of objects"),
    (llava(conversations=["a", "b"]), "'conversations' is missing, empty or no list of objects"),
    ({"conversations": LLAVA["conversations"]}, "has no 'image'"),
    ({"image": "a.jpg"}, "'conversations' is missing"),
    ("text", "is a str; expected an object"),
    (None, "is a NoneType; expected an object"),
    (llava(image="../a.jpg"), "the path '../a.jpg' leads out of the media folder"),
    (llava(image="a/../../b.jpg"), "leads out of the media folder"),
    (llava(image="/etc/passwd"), "the path '/etc/passwd' leads out of the media folder"),
    (llava(image="a\0b.jpg"), "holds control characters"),
    (llava(image="a\nb.jpg"), "holds control characters"),
]


@pytest.mark.parametrize(("item", "reason"), BROKEN)
def test_a_broken_row_is_a_problem_and_the_others_are_read(tmp_path: Path, folder: Path, item: Any, reason: str) -> None:
    rows, problems = datasets.read(written(tmp_path / "a.json", [item, LLAVA, item]), folder, "instructions")
    assert [row.source for row in rows] == ["a.json, row 2"]
    assert [problem.source for problem in problems] == ["a.json, row 1", "a.json, row 3"]
    assert reason in problems[0].reason
    assert "\n" not in problems[0].reason


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"video": "2.mp4", "QA": [{"q": "a"}]}, "has no 'a'"),
        ({"video": "2.mp4", "QA": [{"q": "", "a": "b"}]}, "'q' is empty"),
        ({"video": "2.mp4", "QA": {"q": "a", "a": "b"}}, "'QA' is missing, empty or no list"),
        ({"video": ["2.mp4"], "QA": VIDEOCHAT["QA"]}, "'video' is a list; expected text"),
        ({"video": "../2.mp4", "QA": VIDEOCHAT["QA"]}, "leads out of the media folder"),
    ],
)
def test_broken_rows_of_videochat(tmp_path: Path, folder: Path, item: Any, reason: str) -> None:
    rows, [problem] = datasets.read(written(tmp_path / "a.json", [VIDEOCHAT, item]), folder, "instructions")
    assert len(rows) == 1
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"image_id": "3"}, "has no 'caption'"),
        ({"image_id": True, "caption": "a"}, "'image_id' is a bool; expected text"),
        ({"image_id": "../3", "caption": "a"}, "leads out of the media folder"),
        ({"image_id": "3", "caption": " \n"}, "'caption' is empty"),
    ],
)
def test_broken_captions_of_pictures(tmp_path: Path, folder: Path, item: Any, reason: str) -> None:
    rows, [problem] = datasets.read(written(tmp_path / "a.json", {"annotations": [CAPTION, item]}), folder, "captions")
    assert len(rows) == 1
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,u,d,0", "has 4 cells; the header has 5"),
        ("1,u,d,0,a man, running", "has 6 cells; the header has 5"),
        ("1,u,d,0,", "'name' is empty"),
        ("1,u,d,0,(...)", "'name' holds signs only"),
        (",u,d,0,a", "'videoid' is empty"),
        ("1,u,d,../..,a", "the path '../../1.mp4' leads out of the media folder"),
        ("1,u,d,/etc,a", "leads out of the media folder"),
        ("../../1,u,d,0,a", "leads out of the media folder"),
        ('1,u,d,0,"a" man', "a quotation ends inside a cell, in lines 2 to 2"),
        ('1,u,d,0,"a man\n7,u,d,0,"a dog"', "a quotation ends inside a cell, in lines 2 to 3; all of them are left out"),
    ],
)
def test_broken_rows_of_webvid(tmp_path: Path, folder: Path, line: str, reason: str) -> None:
    header, whole = WEBVID.splitlines()
    content = "\n".join([header, line, whole])
    rows, [problem] = datasets.read(written(tmp_path / "a.csv", content), folder, "captions")
    assert [row.source for row in rows] == ["a.csv, row 2"]
    assert problem.source == "a.csv, row 1"
    assert reason in problem.reason


EXPECTED = r"expected in UTF-8 a table with the columns videoid and name, or as JSON"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", EXPECTED),
        ("a,b\n1,2\n", "is of an unknown layout; " + EXPECTED),
        ("videoid,name\n", r"no row of it can be used \(it has none\); " + EXPECTED),
        ("videoid,name\n1,\n2,\n", r"no row of it can be used \(any.txt, row 1: 'name' is empty\); " + EXPECTED),
        ("videoid,name\n1," + "x" * 200_000, "cannot be read .*field larger than field limit"),
        ("x" * 200_000, "cannot be read .*field larger than field limit"),
        ('videoid,name\n1,a\n2,"b\n3,c\n', r"cannot be read \(lines 3 to 4: unexpected end of data\)"),
        ("{", "cannot be read .*" + EXPECTED),
        ("[" * 100_000, "cannot be read .*recursion.*" + EXPECTED),
        ('{"annotations": ' + "9" * 5_000 + "}", "cannot be read .*" + EXPECTED),
        ("[]", "is JSON of an unknown layout; " + EXPECTED),
        ('[{"image": "a"}]', "is JSON of an unknown layout; " + EXPECTED),
        ('{"annotations": {}}', "is JSON of an unknown layout; " + EXPECTED),
        ('{"annotations": []}', "no row of it can be used"),
        (b"\xff\xd8\xff\xe0", "cannot be read .*'utf-8' codec.*" + EXPECTED),
        (b"videoid,name\n1,a\n2,b\xff\n", "cannot be read .*'utf-8' codec"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, folder: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(VltError, match=message) as raised:
        datasets.read(path, folder, "captions")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "given", "takes"),
    [
        (WEBVID, "instructions", "pre-training"),
        ([LLAVA], "captions", "instruction tuning"),
        ([VIDEOCHAT], "captions", "instruction tuning"),
    ],
)
def test_a_file_for_other_training_is_refused(tmp_path: Path, folder: Path, content: Any, given: str, takes: str) -> None:
    with pytest.raises(VltError, match=rf"which {takes} \(.*\) takes; it was given to {datasets.PURPOSES[given][:8]}"):
        datasets.read(written(tmp_path / "a", content), folder, given)


def test_wrong_arguments_of_read(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(VltError, match="no purpose 'caption'; nearest: captions"):
        datasets.read(tmp_path, folder, "caption")
    with pytest.raises(VltError, match="nothing: is no folder"):
        datasets.read(tmp_path, tmp_path / "nothing", "captions")
    with pytest.raises(VltError, match=r"a\.csv: no such file"):
        datasets.read(tmp_path / "a.csv", folder, "captions")


def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A media folder that has a link out of it, a link within it and a circle; and a table that names them."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    for name in (outside / "a.mp4", inside / "b.mp4"):
        name.write_text("a")
    (inside / "out").symlink_to(outside)
    (inside / "c.mp4").symlink_to(inside / "b.mp4")
    (inside / "d.mp4").symlink_to(inside / "d.mp4")
    (tmp_path / "door").symlink_to(inside)  # the media folder itself may be a link
    return written(tmp_path / "a.csv", "videoid,page_dir,name\na,out,a\nb,,b\nc,,c\nd,,d\ne,,e\n"), tmp_path / "door"


def test_files_are_looked_for_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, door = linked(tmp_path)
    rows, problems = datasets.read(table, door, "captions", check_files=True)
    assert [row.name for row in rows] == ["b.mp4", "c.mp4"]
    assert [problem.source for problem in problems] == [f"a.csv, row {n}" for n in (1, 4, 5)]
    assert "a link leads out of the media folder" in problems[0].reason
    assert "cannot be opened" in problems[1].reason
    assert "no such file" in problems[2].reason
    monkeypatch.setattr(Row, "found", lambda row: pytest.fail("a file was looked for"))
    assert len(datasets.read(table, door, "captions")[0]) == 5


def test_a_link_out_of_the_media_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.mp4").symlink_to(folder / "2.mp4")
    [row] = rows_of(tmp_path, tmp_path / "in", "videoid,name\n1,a\n", "captions")
    problem = examples([row])[0]
    assert isinstance(problem, Problem)
    assert "a link leads out of the media folder" in problem.reason


# Examples


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_example_of_a_webvid_caption(tmp_path: Path, folder: Path, branch: str) -> None:
    rows = rows_of(tmp_path, folder, WEBVID, "captions")
    out = made(rows, branch, seed=5)
    assert shown(out["prompt"]) == f"<s>{{{branch}}}⟦a square\n⟧"
    indices = video.headtail_indices(20, 4, np.random.default_rng([5, 0, 0]))
    assert torch.equal(out["frames"], Clip(rows[0].media).frames(size=SIZE, indices=indices))
    assert out["frames"].shape == (4, 3, SIZE, SIZE)
    assert out["frames"].dtype == torch.float32


def test_frames_of_captions_are_drawn_from_seed_row_and_pass(tmp_path: Path, folder: Path) -> None:
    rows = rows_of(tmp_path, folder, WEBVID, "captions") * 2
    draws = {}
    for seed in (0, 1):
        for i in (0, 1):
            for again in (0, 1):
                out = examples(rows, seed=seed).example(i, again)
                assert not isinstance(out, Problem)
                draws[seed, i, again] = out["frames"].numpy().tobytes()
    assert len(set(draws.values())) > 5
    assert made(rows, seed=1)["frames"].numpy().tobytes() == draws[1, 0, 0]


def test_example_of_videochat(tmp_path: Path, folder: Path) -> None:
    rows = rows_of(tmp_path, folder, [VIDEOCHAT], "instructions")
    out = made(rows)
    assert shown(out["prompt"]) == (
        "<s>\n\n⟦###⟧Human: <Video>{video}</Video> The video contains 4 frames sampled at 0.0, 0.5, 1.0, 1.5 seconds. "
        "What moves?\n⟦###Assistant: A square.\n###⟧Human: How?\n⟦###Assistant: Right.\n###⟧"
    )
    assert torch.equal(out["frames"], Clip(rows[0].media).frames(4, SIZE))
    assert shown(made(rows, "audio", template="llama2")["prompt"]) == (
        "<s>[INST] <<SYS>>\n \n<</SYS>>\n\n<Video>{audio}</Video> The video contains 4 frames sampled at 0.0, 0.5, 1.0, "
        "1.5 seconds. What moves? [/INST] ⟦A square. </s>⟧<s>[INST] How? [/INST] ⟦Right. </s>⟧"
    )


def test_example_of_llava(tmp_path: Path, folder: Path) -> None:
    rows = rows_of(tmp_path, folder, [LLAVA], "instructions")
    out = made(rows)
    assert shown(out["prompt"]) == (
        "<s>\n\n⟦###⟧Human: What is it?\n<Image>{video}</Image>\n⟦###Assistant: A slope.\n###⟧Human: Sure?\n"
        "⟦###Assistant: Yes.\n###⟧"
    )
    assert torch.equal(out["frames"], Clip(folder / "COCO_train2014_000000000007.jpg").frames(size=SIZE))
    assert out["frames"].shape == (1, 3, SIZE, SIZE)


def test_examples_of_described_pictures(tmp_path: Path, folder: Path) -> None:
    content = {"annotations": [CAPTION] * 60}
    [caption, *_] = examples(rows_of(tmp_path, folder, content, "captions"), "audio")
    assert shown(caption["prompt"]) == "<s>{audio}⟦A Slope. (Raw!)\n⟧"
    rows = rows_of(tmp_path, folder, content, "instructions")
    said = [shown(example["prompt"]) for example in examples(rows)]
    end = " ###Assistant: ⟦A Slope. (Raw!)###⟧"
    requests = [
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    ]
    assert set(said) == {f"<s>###Human: <Image>{{video}}</Image> {request}{end}" for request in requests}
    assert said == [shown(example["prompt"]) for example in examples(rows)]
    assert said != [shown(example["prompt"]) for example in examples(rows, seed=1)]


def test_a_video_of_few_frames_gives_all_it_has(tmp_path: Path, folder: Path) -> None:
    expected = Clip(folder / "short.mp4").frames(size=SIZE, indices=[0, 1, 2])
    [row] = rows_of(tmp_path, folder, "videoid,name\nshort,a\n", "captions")
    assert torch.equal(made([row])["frames"], expected)
    [row] = rows_of(tmp_path, folder, [{**VIDEOCHAT, "video": "short.mp4"}], "instructions")
    out = made([row])
    assert torch.equal(out["frames"], expected)
    assert "The video contains 3 frames sampled at 0.0, 0.1, 0.2 seconds. What" in shown(out["prompt"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "none.mp4: no such file"),
        ("text", "text.mp4: cannot be read as mp4"),
        ("still", "still.mp4: is no video (kind: image)"),
        ("sound", "sound.mp4: is no video (kind: sound)"),
        ("n" * 300, "cannot be opened"),
    ],
)
def test_media_that_cannot_be_read_are_problems(tmp_path: Path, folder: Path, name: str, reason: str) -> None:
    problem = examples(rows_of(tmp_path, folder, f"videoid,name\n2,a\n{name},b\n", "captions"))[1]
    assert isinstance(problem, Problem)
    assert problem.source == "any.txt, row 2"
    assert reason in problem.reason


def test_other_problems_of_examples(tmp_path: Path, folder: Path) -> None:
    rows = rows_of(tmp_path, folder, {"annotations": [{"image_id": "moving", "caption": "a"}, CAPTION]}, "instructions")
    assert examples(rows)[0] == Problem("any.txt, row 1", f"{folder / 'moving.jpg'}: is no PNG or JPEG picture")
    assert not isinstance(examples(rows, max_caption=1)[1], Problem)  # a request does not count
    long = llava(conversations=spoken(("human", "a" * 600 + "<image>"), ("gpt", "b")))
    cut = examples(rows_of(tmp_path, folder, [long], "instructions"), template="llama2")[0]
    assert isinstance(cut, Problem)
    assert "nothing of this text is learnt" in cut.reason


@pytest.mark.parametrize("kept", [1, 4, 30])
def test_captions_are_cut_after_what_is_learnt_of_them(tmp_path: Path, folder: Path, kept: int) -> None:
    said = "abcdefghij" * 10
    content = {"annotations": [{"image_id": "3", "caption": said}]}
    [caption] = examples(rows_of(tmp_path, folder, content, "captions"), "audio", max_caption=kept)
    assert shown(caption["prompt"]) == f"<s>{{audio}}⟦{said[:kept]}⟧"
    [description] = examples(rows_of(tmp_path, folder, content, "instructions"), max_caption=kept)
    assert shown(description["prompt"]).endswith(f" ###Assistant: ⟦{said[:kept]}⟧")


@pytest.mark.parametrize(("branch", "queries"), [("video", 32), ("video", 5), ("audio", 8)])
def test_conversations_are_cut_so_that_their_soft_tokens_fit(tmp_path: Path, folder: Path, branch: str, queries: int) -> None:
    """512 in all, begin and soft tokens included, whatever a caption may have."""
    long = llava(conversations=spoken(("human", "What?\n<image>"), ("gpt", "b" * 600)))
    options = {f"num_{branch}_queries": queries}
    [out] = examples(rows_of(tmp_path, folder, [long], "instructions"), branch, max_caption=7, **options)
    prompt = out["prompt"]
    assert sum(queries if isinstance(part, str) else len(part) for part in prompt.parts) == 512
    text = f"\n\n###Human: What?\n<Image></Image>\n###Assistant: {'b' * 600}"[: 511 - queries]
    assert shown(prompt).replace("⟦", "").replace("⟧", "").replace(f"{{{branch}}}", "") == f"<s>{text}"
    short = llava(conversations=spoken(("human", "What?\n<image>"), ("gpt", "b" * 100)))
    [whole] = examples(rows_of(tmp_path, folder, [short], "instructions"), branch, max_caption=7, **options)
    assert shown(whole["prompt"]).endswith("b" * 100 + "\n###⟧")


def test_only_what_was_foreseen_becomes_a_problem(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault in the program")

    rows = rows_of(tmp_path, folder, WEBVID, "captions")
    monkeypatch.setattr(Clip, "frames", broken)
    with pytest.raises(RuntimeError, match="a fault in the program"):
        examples(rows)[0]


def test_examples_end_and_count_from_the_end(tmp_path: Path, folder: Path) -> None:
    made = examples(rows_of(tmp_path, folder, WEBVID + "2,u,d,,b\n", "captions"))
    assert len(made) == len(list(made)) == 2
    assert shown(made[-1]["prompt"]) == "<s>{video}⟦b\n⟧"
    with pytest.raises(IndexError):
        made[2]


def test_a_branch_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(VltError, match="this model has no branch 'audio'; it has: video"):
        examples([], "audio", audio_qformer_config=None, imagebind_config=None)
    with pytest.raises(VltError, match="no chat template"):
        examples([], template="vicuna2")


# Mixtures


def sets(*sizes: int) -> list[Examples]:
    """Sets of rows that name files which are not there: their places are asked for only."""
    return [
        examples([Row(f"set {k}", n + 1, Path("/"), "a", "image", "caption", ()) for n in range(size)])
        for k, size in enumerate(sizes)
    ]


def test_a_mixture_keeps_its_ratio_and_goes_through_every_set() -> None:
    mixture = Mixture(sets(40, 11), [100, 24], 31 * 40, seed=3)
    places = [mixture.place(i) for i in range(len(mixture))]
    for block in range(40):
        assert Counter(which for which, _, _ in places[block * 31 : block * 31 + 31]) == {0: 25, 1: 6}
    for which, size in ((0, 40), (1, 11)):
        gone = [(row, again) for k, row, again in places if k == which]
        passes = [gone[start : start + size] for start in range(0, len(gone), size)]
        orders = [[row for row, _ in one] for one in passes]
        assert len(passes) > 20
        for n, one in enumerate(passes):
            assert {again for _, again in one} == {n}
        assert all(sorted(order) == list(range(size)) for order in orders[:-1])
        assert len(set(orders[-1])) == len(orders[-1])
        assert len({tuple(order) for order in orders[:-1]}) == len(orders) - 1  # each pass in another order
    assert [k for k, _, _ in places[:31]] != [k for k, _, _ in places[31:62]]


def test_a_mixture_is_the_same_from_any_index_on() -> None:
    places = [Mixture(sets(40, 11, 5), [3, 2, 1], 300, seed=3).place(i) for i in range(300)]
    datasets._order.cache_clear()
    again = Mixture(sets(40, 11, 5), [3, 2, 1], 500, seed=3)
    assert [again.place(i) for i in reversed(range(300))] == places[::-1]
    other = Mixture(sets(40, 11, 5), [3, 2, 1], 300, seed=4)
    assert [other.place(i) for i in range(300)] != places
    alone = [[Mixture(sets(40), [1], 40, seed).place(i) for i in range(40)] for seed in (3, 4)]
    assert alone[0] != alone[1]
    copied = pickle.loads(pickle.dumps(again))  # as for a worker
    assert [copied.place(i) for i in range(300)] == places


def test_a_mixture_gives_its_sets_examples(tmp_path: Path, folder: Path) -> None:
    first = examples(rows_of(tmp_path, folder, WEBVID, "captions"), seed=1)
    second = examples(rows_of(tmp_path, folder, {"annotations": [CAPTION] * 3}, "captions"), seed=2)
    mixture = Mixture([first, second], [1, 1], 8, seed=0)
    items = list(mixture)
    assert len(items) == len(mixture) == 8
    for i, item in enumerate(items):
        which, row, again = mixture.place(i)
        expected = (first, second)[which].example(row, again)
        assert not isinstance(item, Problem)
        assert not isinstance(expected, Problem)
        assert item["prompt"] == expected["prompt"]
        assert torch.equal(item["frames"], expected["frames"])
    with pytest.raises(IndexError):
        mixture[8]


def test_a_mixture_of_millions_is_quick_to_enter() -> None:
    class Many(Examples):
        def __init__(self, size: int) -> None:
            self.rows = range(size)  # type: ignore[assignment]

    mixture = Mixture([Many(2_500_000), Many(595_000)], [100, 24], 10**8, seed=0)
    assert mixture.place(10**8 - 1)[2] > 30
    before = datasets._order.cache_info().misses
    for i in range(31 * 200_000, 31 * 200_000 + 31):
        mixture.place(i)
    assert datasets._order.cache_info().misses - before == 3  # one order for each set, one for the block


@pytest.mark.parametrize(
    ("sizes", "ratios", "length"),
    [((), (), 1), ((3,), (1, 1), 1), ((3, 0), (1, 1), 1), ((3,), (0,), 1), ((3,), (0.5,), 1), ((3,), (1,), 0)],
)
def test_impossible_mixtures_are_refused(sizes: tuple, ratios: tuple, length: int) -> None:
    with pytest.raises(VltError, match="expected"):
        Mixture(sets(*sizes), ratios, length, seed=0)


# Batches


def test_collate_groups_by_shape_and_carries_problems_along() -> None:
    prompts = [Prompt(((i,),)) for i in range(4)]
    frames = [torch.full((n, 3, 2, 2), float(n)) for n in (4, 1, 4, 1)]
    items: list[Any] = [{"prompt": p, "frames": f} for p, f in zip(prompts, frames, strict=True)]
    problem = Problem("a", "b")
    out = datasets.collate([items[0], problem, *items[1:]])
    assert out["problems"] == [problem]
    assert [group["prompt"] for group in out["groups"]] == [[prompts[0], prompts[2]], [prompts[1], prompts[3]]]
    assert [tuple(group["frames"].shape) for group in out["groups"]] == [(2, 4, 3, 2, 2), (2, 1, 3, 2, 2)]
    assert out["groups"][0]["frames"].unique().tolist() == [4.0]
    assert datasets.collate([problem]) == {"groups": [], "problems": [problem]}


def test_workers_give_the_same_batches(tmp_path: Path, folder: Path) -> None:
    rows = rows_of(tmp_path, folder, WEBVID + "none,u,d,,a\n2,u,d,,b\n", "captions")
    mixture = Mixture([examples(rows)], [1], 6, seed=0)

    def batches(workers: int) -> list[Any]:
        loader = torch.utils.data.DataLoader(mixture, batch_size=3, collate_fn=datasets.collate, num_workers=workers)
        return list(loader)

    for ours, theirs in zip(batches(0), batches(1), strict=True):
        assert ours["problems"] == theirs["problems"]
        assert len(ours["problems"]) == 1
        assert ours["groups"][0]["prompt"] == theirs["groups"][0]["prompt"]
        assert torch.equal(ours["groups"][0]["frames"], theirs["groups"][0]["frames"])


def test_rows_are_small(tmp_path: Path, folder: Path) -> None:
    [row] = rows_of(tmp_path, folder, WEBVID, "captions")
    assert not hasattr(row, "__dict__")  # millions of them are held
    assert pickle.loads(pickle.dumps(row)) == row
    assert os.fspath(row.media) == str(folder / "0/1.mp4")
