"""Every part against the original's numbers, in float32, within 2e-5."""

from __future__ import annotations

import json
import re

import pytest
import torch
from einops import rearrange
from torch import nn

from tests.conftest import REFERENCE, Numbers, close
from vlt.inputs.prompt import Prompt
from vlt.inputs.video import normalise
from vlt.model.checkpoints import _our_name
from vlt.model.video_llama import VideoLlama


def outputs_of(modules: dict[str, nn.Module], call) -> dict[str, torch.Tensor]:
    """What each module returned while `call` ran."""
    out: dict[str, torch.Tensor] = {}

    def keep(name):
        def hook(module, args, value):
            out[name] = value[0] if isinstance(value, tuple) else value

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return out


def frames(vision: Numbers) -> torch.Tensor:
    return rearrange(vision["inputs.video"], "b c t h w -> b t c h w")


def test_video_branch_stage_by_stage(tiny: VideoLlama, vision: Numbers) -> None:
    want = ["patches", "image_queries", "frame_tokens", "video_queries", "video_prefix"]
    out = tiny.run({"frames": frames(vision)}, want)
    close(out["patches"].flatten(0, 1), vision["outputs.ln_vision"])
    close(out["image_queries"].flatten(0, 1), vision["outputs.image_qformer.last_hidden_state"])
    close(out["frame_tokens"], vision["outputs.frame_hidden_state"].flatten(1, 2))
    close(out["video_queries"], vision["outputs.video_qformer.last_hidden_state"])
    close(out["video_prefix"], vision["outputs.inputs_llama"])


def test_vit_block_by_block(tiny: VideoLlama, vision: Numbers) -> None:
    blocks = {f"outputs.vit.block.{i}": layer for i, layer in enumerate(tiny.vision_model.encoder.layers)}
    out = outputs_of(blocks, lambda: tiny.run({"frames": frames(vision)}, ["patches"]))
    assert len(out) == 3
    for name, value in out.items():
        close(value, vision[name])


@pytest.mark.parametrize("branch", ["image", "video", "audio"])
def test_qformer_layer_by_layer(tiny: VideoLlama, vision: Numbers, audio: Numbers, branch: str) -> None:
    qformer = getattr(tiny, f"{branch}_qformer")
    prefix = "outputs.audio.audio_qformer" if branch == "audio" else f"outputs.{branch}_qformer"
    numbers = audio if branch == "audio" else vision
    given = {"spectrograms": audio["inputs.audio"]} if branch == "audio" else {"frames": frames(vision)}
    layers = {f"{prefix}.layer.{i}": layer for i, layer in enumerate(qformer.encoder.layer)}
    modules = {f"{prefix}.embeddings": qformer.layernorm, **layers}
    out = outputs_of(modules, lambda: tiny.run(given, [f"{branch}_queries"]))
    assert len(out) == 1 + len(qformer.encoder.layer)
    for name, value in out.items():
        close(value, numbers[name])


def test_still_is_a_video_of_one_frame(tiny: VideoLlama, vision: Numbers) -> None:
    image = rearrange(vision["inputs.image"], "b c t h w -> b t c h w")
    out = tiny.run({"frames": image}, ["video_prefix"])
    close(out["video_prefix"], vision["outputs.single_image.inputs_llama"])


def test_audio_branch_stage_by_stage(tiny: VideoLlama, audio: Numbers) -> None:
    want = ["audio_features", "segment_tokens", "audio_queries", "audio_prefix"]
    out = tiny.run({"spectrograms": audio["inputs.audio"]}, want)
    close(out["audio_features"], audio["outputs.audio.get_audio_feature.final"])
    close(out["segment_tokens"], audio["outputs.audio.audio_qformer.encoder_hidden_states"])
    close(out["audio_queries"], audio["outputs.audio.audio_qformer.last_hidden_state"])
    close(out["audio_prefix"], audio["outputs.audio.inputs_llama"])


def test_audio_branch_in_vision_mode(tiny: VideoLlama, audio: Numbers) -> None:
    features = tiny.imagebind.embed(audio["inputs.vision_frames"], "vision")
    out = tiny.run({"audio_features": features}, ["audio_queries", "audio_prefix"])
    close(features, audio["outputs.vision.get_audio_feature.final"])
    close(out["audio_queries"], audio["outputs.vision.audio_qformer.last_hidden_state"])
    close(out["audio_prefix"], audio["outputs.vision.inputs_llama"])


@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_imagebind_block_by_block(tiny: VideoLlama, audio: Numbers, modality: str) -> None:
    trunk = tiny.imagebind.trunk(modality)
    inputs = {
        "audio": lambda: audio["inputs.audio"].flatten(0, 1),
        "vision": lambda: audio["inputs.vision_frames"].flatten(0, 1),
        "text": lambda: audio["inputs.text"],
    }[modality]()
    out = outputs_of({str(i): block for i, block in enumerate(trunk.blocks)}, lambda: trunk(inputs))
    for i, value in out.items():
        key = f"outputs.imagebind.{modality}.block.{i}_LBD"
        first = f"{key}.first" in audio.tensors
        close(rearrange(value[:1] if first else value, "b n d -> n b d"), audio[f"{key}.first" if first else key])
    tokens = trunk.tokens(inputs)
    if modality == "audio":
        close(tokens[:1], audio["outputs.imagebind.audio.tokens.first"])
    if modality == "text":
        close(tokens, audio["outputs.imagebind.text.tokens"])
    close(trunk(inputs), audio[f"outputs.imagebind.{modality}.post"])


@pytest.mark.parametrize(
    ("name", "modality", "key"),
    [
        ("audio", "audio", "audio"),
        ("vision_image", "vision", "vision"),
        ("vision_video", "vision", "vision_video"),
        ("text", "text", "text"),
    ],
)
def test_joint_embeddings(tiny: VideoLlama, audio: Numbers, name: str, modality: str, key: str) -> None:
    close(tiny.imagebind.joint(audio[f"inputs.{name}"], modality), audio[f"outputs.joint.{key}"])


PROBES = [
    (file, key.removeprefix("outputs.eps_probe."))
    for file in ("vision_tiny", "audio_tiny")
    for key in Numbers(file).tensors
    if key.startswith("outputs.eps_probe.")
]


@pytest.mark.parametrize(("file", "name"), PROBES)
def test_epsilon_of_every_norm(tiny: VideoLlama, file: str, name: str) -> None:
    """At realistic activations a wrong epsilon is invisible; on inputs this small it is not."""
    numbers = Numbers(file)
    ours = _our_name(f"{name}.weight").removesuffix(".weight")
    module = tiny.get_submodule(ours)
    assert isinstance(module, nn.LayerNorm)
    expected = numbers[f"outputs.eps_probe.{name}"]
    close(module(numbers[f"inputs.eps_probe.{expected.shape[-1]}"]), expected)


def talk(full: Numbers, name: str, branches: tuple[str, ...]) -> Prompt:
    keys = sorted(k for k in full.tensors if re.fullmatch(rf"inputs\.{name}\.token_ids\.\d", k))
    pieces = [tuple(full[key][0].tolist()) for key in keys]
    parts = [pieces[0]]
    for branch, piece in zip(branches, pieces[1:], strict=True):
        parts += [branch, piece]
    return Prompt(tuple(parts))


def given(full: Numbers, branches: tuple[str, ...], image: bool = False) -> dict[str, torch.Tensor]:
    pixels = rearrange(full["inputs.frames_uint8"], "c t h w -> t h w c").numpy()
    out = {}
    if "video" in branches:
        out["frames"] = normalise(pixels[:1] if image else pixels)[None]
    if "audio" in branches:
        out["spectrograms"] = full["inputs.audio"]
    return out


def test_prompt_and_logits_with_sound_and_video(tiny: VideoLlama, full: Numbers) -> None:
    prompt = talk(full, "vicuna_audio_video", ("audio", "video"))
    out = tiny.run({**given(full, ("audio", "video")), "prompt": prompt}, ["audio_prefix", "video_prefix", "prefix", "logits"])
    close(out["audio_prefix"], full["outputs.vicuna_audio_video.soft_tokens.0"])
    close(out["video_prefix"], full["outputs.vicuna_audio_video.soft_tokens.1"])
    close(out["prefix"], full["outputs.vicuna_audio_video.inputs_embeds"])
    close(out["logits"][:, ::8], full["outputs.vicuna_audio_video.logits_every_8th_position"])
    close(out["logits"][:, -16:], full["outputs.vicuna_audio_video.logits_last_16"])


@pytest.mark.parametrize(
    ("name", "branches"),
    [("vicuna_video_only", ("video",)), ("llama2_audio_video", ("audio", "video"))],
)
def test_other_talks(tiny: VideoLlama, full: Numbers, name: str, branches: tuple[str, ...]) -> None:
    out = tiny.run({**given(full, branches), "prompt": talk(full, name, branches)}, ["prefix", "logits"])
    close(out["prefix"].abs().mean(-1), full[f"outputs.{name}.inputs_embeds_mean_abs"])
    close(out["logits"][:, -1], full[f"outputs.{name}.last_logits"])


def test_greedy_answer(tiny: VideoLlama, full: Numbers) -> None:
    prompt = talk(full, "vicuna_audio_video", ("audio", "video"))
    soft = tiny.run(given(full, ("audio", "video")), ["audio_prefix", "video_prefix"])
    prefix = {"audio": soft["audio_prefix"][0], "video": soft["video_prefix"][0]}
    expected = tuple(full["outputs.vicuna_audio_video.greedy_ids"][0].tolist())
    assert tiny.generate_from([prompt], [prefix], max_new_tokens=12)[0].ids == expected


def caption_prompts(full: Numbers, branch: str, soft: int) -> list[Prompt]:
    """The caption talks, as the reference README describes them: begin, prompt, soft tokens, prompt, caption, end sign."""
    stored = json.loads((REFERENCE / "full_tiny_prompts.json").read_text())["train_caption"]
    before, after = stored["prompt"].split("<ImageHere>")
    encode = lambda text: tuple(b + 3 for b in text.encode())  # noqa: E731
    prompts = []
    for caption in stored["captions"]:
        answer = encode(caption + stored["end_sym"])
        first, second = (1, *encode(before)), encode(after)
        labels = ((-100,) * len(first), (-100,) * len(second) + answer)
        prompts.append(Prompt((first, branch, second + answer), labels))
    return prompts


def instruction_prompts(full: Numbers, branch: str) -> list[Prompt]:
    """A run of id 259 marks where the soft tokens go."""
    prompts = []
    for ids, labels in zip(
        full[f"inputs.train_multi_{kind(branch)}.input_ids"], full[f"inputs.train_multi_{kind(branch)}.labels"], strict=True
    ):
        mark = (ids == 259).nonzero().flatten().tolist()
        a, b = mark[0], mark[-1] + 1
        end = int((ids != 0).nonzero().max()) + 1
        parts = (tuple(ids[:a].tolist()), branch, tuple(ids[b:end].tolist()))
        prompts.append(Prompt(parts, (tuple(labels[:a].tolist()), tuple(labels[b:end].tolist()))))
    return prompts


def kind(branch: str) -> str:
    return "vision" if branch == "video" else "audio"


def training_input(tiny: VideoLlama, full: Numbers, branch: str) -> dict[str, torch.Tensor]:
    """The audio branch is trained on pictures, through ImageBind's vision trunk."""
    if branch == "video":
        return {"frames": rearrange(full["inputs.train_images"], "b c t h w -> b t c h w")}
    images = rearrange(full["inputs.train_ib_images"], "b c t h w -> b t c h w")
    return {"audio_features": tiny.imagebind.embed(images, "vision")}


@pytest.mark.parametrize("branch", ["video", "audio"])
@pytest.mark.parametrize("style", ["caption", "multi"])
def test_training_loss(tiny: VideoLlama, full: Numbers, branch: str, style: str) -> None:
    soft = tiny.config.num_queries[branch]
    prompts = caption_prompts(full, branch, soft) if style == "caption" else instruction_prompts(full, branch)
    name = f"outputs.train_{style}_{kind(branch)}"
    inputs = training_input(tiny, full, branch)
    out = tiny(prompt=prompts, **inputs)
    close(out.loss.reshape(1), full[f"{name}.loss"])
    prefix = tiny.run({"prompt": prompts, **inputs}, ["prefix", "prefix_mask"])
    for ours, mask, theirs, used in zip(
        prefix["prefix"], prefix["prefix_mask"], full[f"{name}.inputs_embeds"], full[f"{name}.attention_mask"], strict=True
    ):
        close(ours[mask], theirs[used.bool()])


CROSS = "bert.encoder.layer.0.crossattention.self.query.weight"
GRADIENTS = {
    "video": [
        "llama_proj.bias",
        "llama_proj.weight",
        f"video_Qformer.{CROSS}",
        "video_Qformer.bert.encoder.layer.1.output_query.dense.weight",
        "video_frame_position_embedding.weight",
        "video_query_tokens",
    ],
    "audio": [f"audio_Qformer.{CROSS}", "audio_llama_proj.weight", "audio_position_embedding.weight", "audio_query_tokens"],
}


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_training_gradients(tiny: VideoLlama, full: Numbers, branch: str) -> None:
    parameters = {key: tiny.get_parameter(_our_name(key)) for key in GRADIENTS[branch]}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        loss = tiny(prompt=caption_prompts(full, branch, 0), **training_input(tiny, full, branch)).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    for key, gradient in zip(parameters, gradients, strict=True):
        close(gradient, full[f"outputs.train_caption_{kind(branch)}.grad.{key}"])


def test_a_prompt_without_labels_teaches_nothing(tiny: VideoLlama, full: Numbers) -> None:
    prompts = caption_prompts(full, "video", 0)
    inputs = training_input(tiny, full, "video")
    first = {"frames": inputs["frames"][:1]}
    alone = tiny(prompt=prompts[:1], **first).loss
    mixed = tiny(prompt=[prompts[0], Prompt(prompts[1].parts)], **inputs).loss
    close(mixed, alone)
    assert tiny(prompt=Prompt(prompts[0].parts), **first).loss is None
