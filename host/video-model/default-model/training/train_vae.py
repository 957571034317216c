"""Trains the frame autoencoder on fresh renders in a fixed number of steps: `python train_vae.py --run RUN`."""
import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from export import save_vae
from renderer import Renderer
from vae import POSTERIOR_STD, FrameVae

SIZE, CROP = 128, 64


def pictures(renderer, count, crop, generator=None):
    """Frames at random times; `crop`: a random 64-pixel window of each, on a grid of one latent cell."""
    scene = renderer.sample(count, generator)
    frames = renderer.render(scene, torch.rand(count, 1, generator=generator), SIZE)[:, :, 0]
    if crop:
        corner = torch.randint((SIZE - CROP) // 16 + 1, (count, 2)).tolist()
        frames = torch.stack([f[:, 16 * y : 16 * y + CROP, 16 * x : 16 * x + CROP] for f, (y, x) in zip(frames, corner)])
    return frames.contiguous(memory_format=torch.channels_last)


def loss_of(vae, x):
    mean = vae.mean(x)
    y = vae.picture(mean + POSTERIOR_STD * torch.randn_like(mean))
    edge = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + 0.3 * edge + 1e-3 * mean.square().mean(), F.mse_loss(y.clamp(-1, 1), x)


def decibels(mse):
    return -10 * math.log10(mse / 4)


@torch.no_grad()
def finish(vae, renderer, folder):
    """Rounds to the precision that ships, sets the latent statistics and measures the quality on fresh scenes."""
    vae.load_state_dict({name: value.bfloat16().float() for name, value in vae.state_dict().items()})
    generator = torch.Generator().manual_seed(4242)
    x = pictures(renderer, 128, crop=False, generator=generator)
    vae.set_statistics(torch.cat([vae.mean(part) for part in x.split(32)]))
    y = torch.cat([vae.decode(vae.encode(part[:, :, None]))[:, :, 0] for part in x.split(32)])
    save_vae(folder, vae)
    return decibels(F.mse_loss(y, x).item())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints; outside of git")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.run.mkdir(parents=True, exist_ok=True)
    renderer, vae = Renderer(args.device), FrameVae().to(args.device, memory_format=torch.channels_last)
    average = {name: value.detach().clone() for name, value in vae.named_parameters()}
    optimiser = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    start, seen = time.time(), 0
    for step in range(1, args.steps + 1):
        progress = (step - 1) / args.steps
        optimiser.param_groups[0]["lr"] = args.rate * min(1, step / 60) * (1 - progress)
        crop = progress < 0.8
        x = pictures(renderer, args.batch if crop else args.batch // 4, crop)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            loss, mse = loss_of(vae, x)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        torch._foreach_lerp_(list(average.values()), list(vae.parameters()), 1 - min(0.998, step / (10 + step)))
        seen += len(x)
        if step % 50 == 0:
            print(f"vae {step} {time.time() - start:.0f}s loss {loss.item():.4f} psnr {decibels(mse.item()):.2f} {seen / (time.time() - start):.0f} pictures/s", flush=True)
    vae.load_state_dict(average)
    psnr = finish(vae.float(), renderer, args.run / "vae")
    report = {"psnr_db": round(psnr, 2), "steps": args.steps, "pictures": seen, "minutes": round((time.time() - start) / 60, 1), "parameters": sum(p.numel() for p in vae.parameters())}
    (args.run / "vae.json").write_text(json.dumps(report))
    print(report)


if __name__ == "__main__":
    main()
