"""The box is made from nothing by one recipe; each of its parts learns; and what is shipped answers on fresh clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import vlt
from vlt.model.video_llama import VideoLlama
from vlt.train import box, foundations, hearing, reading, recipe, world
from vlt.train.recipe import Schedule


def same_weights(a: VideoLlama, b: VideoLlama) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_box_from_nothing(tmp_path: Path) -> None:
    """A few steps of each kind: they teach little, and show that all runs, and ends in the same place when cut off."""
    log = box.make(tmp_path / "a", tmp_path / "work", scale=0.002, quiet=True)
    names = ["eyes", "image-qformer", "imagebind", "language-model", "vl-1", "vl-2", "al-1", "al-2"]
    assert [row["name"] for row in log] == names
    assert json.loads((tmp_path / "a" / "training.json").read_text())["steps"] == log
    model = vlt.load(tmp_path / "a", device="cpu")
    assert model.answer(vlt.Clip("data/clips/two_bell.mp4"), "What do you see?", max_new_tokens=2).ids
    fresh = box.newborn(0)
    moved = {n.split(".")[0] for n, p in fresh.named_parameters() if not torch.equal(p.half().float(), model.get_parameter(n))}
    assert moved == {n.split(".")[0] for n, _ in fresh.named_parameters()}  # nothing was forgotten
    for step in ("6-vl-2", "7-al-1", "8-al-2"):
        shutil.rmtree(tmp_path / "work" / step)
    box.make(tmp_path / "b", tmp_path / "work", scale=0.002, quiet=True)
    assert same_weights(vlt.load(tmp_path / "b", device="cpu"), model)


def test_seeds_differ() -> None:
    assert same_weights(box.newborn(0), box.newborn(0))
    assert not same_weights(box.newborn(0), box.newborn(1))


def fitted(task: torch.nn.Module, data: torch.utils.data.Dataset, steps: int, rate: float, folder: Path, collate=None) -> None:
    schedule = Schedule(steps, 64, rate, rate / 100, rate / 30, steps // 10, weight_decay=0.01, clip=1.0)
    recipe.fit(task, data, schedule, folder, collate=collate, quiet=True)


def test_eyes_learn_colours_first(tmp_path: Path) -> None:
    model = box.newborn(0).requires_grad_(False)
    task = foundations.Eyes(model)
    fitted(task, foundations.Pictures(1, 50 * 64), 50, 1.5e-3, tmp_path)
    batch = next(iter(DataLoader(foundations.Pictures(4, 200), batch_size=200)))
    with torch.no_grad():
        found = task.task.head(model.eval().vision_model(batch["picture"]).last_hidden_state[:, 1:])
    seen = batch["cover"] > foundations.VISIBLE
    colours = found[..., 1 + len(world.SHAPES) :][..., : len(world.COLOURS)].argmax(-1)
    assert (colours == batch["colour"])[seen].float().mean() > 0.85  # 1/6 by chance


def test_slots_are_learnt_from_the_frozen_eye(boxed: VideoLlama, tmp_path: Path) -> None:
    model = box.newborn(0).requires_grad_(False)
    model.vision_model = boxed.vision_model
    task = foundations.Slots(model)
    fitted(task, foundations.SlotLessons(model, foundations.Pictures(1, 1500), 0, 300 * 64), 300, 1e-3, tmp_path)
    fresh = foundations.SlotLessons(model, foundations.Pictures(4, 300), 0, 1).kept
    with torch.no_grad():
        queries = model.image_query_tokens.expand(300, -1, -1)
        out = model.image_qformer(query_embeds=queries, encoder_hidden_states=fresh["patches"].float()).last_hidden_state
        present = task.head(out[:, : len(world.SHAPES)])[..., 0] > 0
    assert (present == fresh["there"]).all(dim=1).float().mean() > 0.8  # which of 5 shapes: all right


def test_reader_learns_to_repeat(tmp_path: Path) -> None:
    model = box.newborn(0).requires_grad_(False)
    data = reading.Texts(model.tokenizer, 0, 10 * 120 * 64)  # of ten times as many, the first tenth is to be repeated
    fitted(reading.Reader(model), data, 120, 2e-3, tmp_path, reading.together)
    batch = reading.together([reading.Texts(model.tokenizer, 5, 10_000)[i] for i in range(100)])
    with torch.no_grad():
        guessed = model.language_model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1].argmax(-1)
    told = batch["labels"][:, 1:] != -100
    assert (guessed == batch["labels"][:, 1:])[told].float().mean() > 0.35  # 1/21 by chance


def test_ears_learn_from_pictures(boxed: VideoLlama) -> None:
    """The audio branch, from nothing, with the box's ImageBind and language model: taught on pictures, asked about sound."""
    rows = hearing.compare(boxed, 60, seed=2000, lengths=(1.0, 20.0), scale=0.4)
    right = {(row["taught"], row["question"], row["length"]): row["right"] for row in rows}
    assert right["sound", "source", 1.0] > 0.9
    assert right["pictures", "source", 1.0] > 0.8 * right["sound", "source", 1.0]
    assert right["pictures, ImageBind untrained", "source", 1.0] < 0.5  # 1/5 by chance
