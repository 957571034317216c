"""A small classifier, trained on real renders, that says which shape, colour, motion and background a clip shows.

It is a yardstick of this closed world only. It looks at 64-pixel frames: a convolution stack for each frame with its coordinates as
channels, the soft position where each channel fires (which is what tells motion), then a convolution over time.
"""
import argparse
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from renderer import ATTRIBUTES, Renderer, key_times, pixel_grid
from sampling import KEY_FRAMES

SIZE = 64


class Judge(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        widths = [5, width, 2 * width, 4 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in widths[1:])
        wide = 4 * width
        self.mix, self.time = nn.Linear(4 * wide, wide), nn.Conv1d(wide, wide, 3, padding=1)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * wide, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, clips):
        """(B,3,F,H,W) in [-1,1] -> logits by attribute."""
        batch, frames = len(clips), clips.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (SIZE, SIZE), mode="area") if frames.shape[-1] != SIZE else frames
        grid = torch.stack(pixel_grid(SIZE, frames.device))[None].expand(len(frames), -1, -1, -1)
        x = torch.cat([frames, grid], 1).contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        across, down = pixel_grid(x.shape[-1], x.device)
        weight = x.flatten(2).float().softmax(-1)
        position = [(weight * axis.flatten()).sum(-1) for axis in (across, down)]
        x = torch.cat([x.float().mean((2, 3)), x.float().amax((2, 3)), *position], -1)
        x = F.silu(self.mix(x)).unflatten(0, (batch, -1)).transpose(1, 2)
        x = x + F.silu(self.time(x))
        x = torch.cat([x.mean(-1), x.amax(-1)], -1)
        return {name: head(x) for name, head in self.heads.items()}


def soften(clips):
    """Noise and blur of random strength, so that a sample's softness is not held against it."""
    size = int(torch.randint(24, SIZE + 1, ()))
    frames = clips.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(F.interpolate(frames, (size, size), mode="area"), (SIZE, SIZE), mode="bilinear")
    frames = frames + 0.08 * torch.rand(()) * torch.randn_like(frames)
    return frames.unflatten(0, (len(clips), -1)).transpose(1, 2)


def train(steps, batch, device, seed=11):
    torch.manual_seed(seed)
    renderer, judge, generator = Renderer(device), Judge().to(device), torch.Generator().manual_seed(seed)
    optimiser, start = torch.optim.AdamW(judge.parameters(), weight_decay=0.01), time.time()
    for step in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1, step / 30) * (1 - (step - 1) / steps)
        scene = renderer.sample(batch, generator, held_out=step % 10 == 0)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = judge(soften(renderer.render(scene, key_times(KEY_FRAMES), SIZE)))
        loss = sum(F.cross_entropy(logits[name].float(), scene[name]) for name in ATTRIBUTES)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            right = {name: round((logits[name].argmax(-1) == scene[name]).float().mean().item(), 2) for name in ATTRIBUTES}
            print(f"judge {step} {time.time() - start:.0f}s loss {loss.item():.3f} {right}", flush=True)
    return judge.eval()


@torch.no_grad()
def verdicts(judge, clips, scene):
    """Share of clips that show what the scene says, by attribute, and all at once."""
    logits = [judge(part.float()) for part in clips.split(32)]
    right = {name: torch.cat([part[name] for part in logits]).argmax(-1) == scene[name] for name in ATTRIBUTES}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {name: round(value.float().mean().item(), 3) for name, value in right.items()}


def load(path, device="cpu"):
    judge = Judge().to(device)
    judge.load_state_dict(torch.load(path, map_location=device))
    return judge.eval().requires_grad_(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains the judge.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.save(train(options.steps, options.batch, options.device).state_dict(), options.run / "judge.pt")
