"""Goldens for step caching: a tiny transformer steps through a schedule under diffusers' own cache hooks.

    python tests/parity/step_cache.py        (diffusers 0.42.1, torch 2.15; CPU, float32)

The latent follows the velocity (flow-matching Euler), as in a denoising. `skipped` says which steps a hook left out; the thresholds are chosen
between two steps' distances, so that the last bits decide nothing.
"""
import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig
from safetensors.torch import save_file

from networks import GOLDENS, published, randomise

CONFIG = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=32, ffn_dim=32,
              num_layers=3, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32)
STEPS = 12
RATIOS = [1.0, 1.3, 1.1, 1.02, 1.01, 1.01, 0.99, 1.01, 1.02, 1.01, 0.97, 0.9]


def denoise(model, latent, text):
    ran = []
    model.blocks[1].ffn.register_forward_hook(lambda module, args, out: ran.append(True))
    velocities, skipped = [], []
    sigmas = torch.linspace(1, 0, STEPS + 1)
    for now, then in zip(sigmas, sigmas[1:]):
        before = len(ran)
        with model.cache_context("cond"):
            velocity = model(latent, now[None] * 1000, text).sample
        latent = latent + (then - now) * velocity
        velocities.append(velocity[0])
        skipped.append(float(len(ran) == before))
    return torch.stack(velocities), torch.tensor(skipped)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(41)
        latent, text = torch.randn(1, 4, 2, 4, 6, generator=generator), torch.randn(1, 5, 8, generator=generator)
        tensors = {"in.latent": latent[0], "in.text": text[0], "in.ratios": torch.tensor(RATIOS)}
        fresh = lambda: randomise(WanTransformer3DModel(**CONFIG), 42)
        model = fresh()
        tensors |= {f"weights.{key}": value for key, value in model.state_dict().items()}
        for name, config in (
            ("first_block", FirstBlockCacheConfig(threshold=0.25)),
            ("mag", MagCacheConfig(threshold=0.06, max_skip_steps=2, retention_ratio=0.2, num_inference_steps=STEPS, mag_ratios=RATIOS)),
        ):
            cached = fresh()
            cached.enable_cache(config)
            velocities, skipped = denoise(cached, latent, text)
            tensors |= {f"out.{name}.velocity": velocities, f"out.{name}.skipped": skipped}
            print(name, skipped.int().tolist())
        path = GOLDENS / "step_cache.safetensors"
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata={"config": json.dumps(published(model))})
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
