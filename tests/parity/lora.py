"""Goldens for adapters: three LoRA files in the dialects of public ones, and what the model of `transformer_i2v` predicts with them.

    python tests/parity/lora.py        (after networks.py; diffusers 0.42.1, torch 2.15; CPU, float32)

The oracle adds strength · alpha / rank · up · down to the weights themselves.
"""
import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

GOLDENS = Path(__file__).parent / "goldens"
RANK = 3
PEFT = ["patch_embedding", "proj_out", "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1",
        "condition_embedder.image_embedder.ff.net.0.proj", "blocks.0.attn1.to_q", "blocks.0.attn1.to_k", "blocks.0.attn1.to_out.0",
        "blocks.0.attn2.to_v", "blocks.0.attn2.add_k_proj", "blocks.0.ffn.net.0.proj", "blocks.0.ffn.net.2", "blocks.1.attn2.to_out.0"]
ORIGINAL = {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.self_attn.v": "blocks.1.attn1.to_v", "blocks.1.cross_attn.k_img": "blocks.1.attn2.add_k_proj",
            "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "blocks.1.ffn.2": "blocks.1.ffn.net.2", "time_embedding.0": "condition_embedder.time_embedder.linear_1"}
FLAT = {"blocks_0_self_attn_q": "blocks.0.attn1.to_q", "blocks_0_cross_attn_v_img": "blocks.0.attn2.add_v_proj", "blocks_0_ffn_2": "blocks.0.ffn.net.2"}


def read_golden(name):
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])


def pair(model, layer, generator):
    """Matrices that change the layer by a third of its own size; a convolution's keep its kernel's dimensions."""
    weight = dict(model.named_modules())[layer].weight
    down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
    up = 0.3 * torch.randn(weight.shape[0], RANK, *(1,) * (weight.dim() - 2), generator=generator)
    return down.bfloat16().float(), up.bfloat16().float()


def merge(model, layer, down, up, scale, bias=None):
    module = dict(model.named_modules())[layer]
    module.weight.data += scale * (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
    if bias is not None:
        module.bias.data += bias


def make_files(model):
    """The files, and for each of them a function that merges it into a model at a strength."""
    generator = torch.Generator().manual_seed(31)
    peft, original, flat = ({}, {}, {})
    merges = [[], [], []]
    for layer in PEFT:
        down, up = pair(model, layer, generator)
        peft |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
        merges[0].append((layer, down, up, 6 / RANK, None))
    for name, layer in ORIGINAL.items():
        down, up = pair(model, layer, generator)
        bias = 0.2 * torch.randn(up.shape[0], generator=generator)
        key = f"diffusion_model.{name}"
        original |= {f"{key}.lora_down.weight": down.bfloat16(), f"{key}.lora_up.weight": up.bfloat16(), f"{key}.alpha": torch.tensor(2.0), f"{key}.diff_b": bias}
        merges[1].append((layer, down, up, 2 / RANK, bias))
    # What no low-rank product can do is left out, and said.
    original["diffusion_model.blocks.0.self_attn.norm_q.diff"] = torch.zeros(40)
    for name, layer in FLAT.items():
        down, up = pair(model, layer, generator)
        flat |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up, f"lora_unet_{name}.alpha": torch.tensor([1.5])}
        merges[2].append((layer, down, up, 1.5 / RANK, None))
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 6, "transformer.alpha_pattern": {}})}
    for name, tensors, extra in (("peft", peft, metadata), ("original", original, None), ("flat", flat, None)):
        save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDENS / f"lora_{name}.safetensors", metadata=extra)
    return merges


def velocity(golden, config, merges, strengths):
    model = WanTransformer3DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    model.load_state_dict({k.removeprefix("weights."): v.float() for k, v in golden.items() if k.startswith("weights.")})
    for strength, layers in zip(strengths, merges):
        for layer, down, up, scale, bias in layers:
            merge(model, layer, down, up, strength * scale, None if bias is None else strength * bias)
    inputs = (golden[f"in.{key}"][None] for key in ("latent", "text", "image"))
    latent, text, image = inputs
    return model.eval()(latent, golden["in.timestep"], text, image).sample[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        golden, config = read_golden("transformer_i2v")
        merges = make_files(WanTransformer3DModel(**{k: v for k, v in config.items() if not k.startswith("_")}))
        cases = {"none": (0, 0, 0), "peft": (1, 0, 0), "original": (0, 0.75, 0), "flat": (0, 0, -0.5), "all": (0.5, 1, 1.25)}
        outputs = {f"out.{name}": velocity(golden, config, merges, strengths).contiguous() for name, strengths in cases.items()}
        assert (outputs["out.none"] - golden["out.velocity"]).abs().max() < 1e-5
        for name, value in outputs.items():
            print(f"{name}: moves the velocity by {(value - outputs['out.none']).norm() / outputs['out.none'].norm():.2f}")
        save_file(outputs, GOLDENS / "lora_velocity.safetensors")
