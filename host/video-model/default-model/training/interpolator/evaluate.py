"""Held-out middle frames of real clips: frames i and i+2 give i+1, and the guess is compared with the true frame.

    python evaluate.py WEIGHTS CLIP... [--json FILE]

Even i only; triplets across a cut are left out. Beside the network: the blend of the two frames, and, where OpenCV is installed,
both frames warped half way by DIS optical flow and averaged.
"""
import argparse
import json
import time
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from model import interpolate, load, warp

CUT = 40  # mean absolute difference of two neighbouring frames, of 255, above which they belong to two shots


def frames(path):
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def clip_triplets(path, count=None):
    """(first, middle, last) uint8 pictures; `count` of them, evenly spread."""
    pictures = frames(path)
    apart = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(pictures, pictures[1:])]
    starts = [i for i in range(0, len(pictures) - 2, 2) if max(apart[i], apart[i + 1]) < CUT]
    if count:
        starts = [starts[round(k * (len(starts) - 1) / (count - 1))] for k in range(count)]
    return [pictures[i : i + 3] for i in starts]


def tensor(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def psnr(a, b):
    return -10 * torch.log10(F.mse_loss(a, b).clamp_min(1e-10)).item()


def ssim(a, b):
    """Mean structural similarity (Wang et al. 2004) of two (1,3,H,W): 11x11 Gaussian window, sigma 1.5."""
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5)
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)
    blur = lambda x: F.conv2d(x, window, groups=3)  # noqa: E731
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    return (((2 * ma * mb + 0.01**2) * (2 * cov + 0.03**2)) / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2))).mean().item()


def blend(first, last):
    return (first + last) / 2


def dis(first, last):
    """Both pictures moved half of the way along their DIS flow, averaged."""
    import cv2

    grey = [cv2.cvtColor((x[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (first, last)]
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [torch.from_numpy(engine.calc(a, b, None)).permute(2, 0, 1)[None] for a, b in (grey, grey[::-1])]
    return (warp(first, flows[1] / 2) + warp(last, flows[0] / 2)) / 2


def score(net, triplets):
    """Mean PSNR of the network and of blending."""
    ours, plain = [], []
    for first, middle, last in triplets:
        first, middle, last = tensor(first), tensor(middle), tensor(last)
        device = next(net.parameters()).device
        ours.append(psnr(interpolate(net, first.to(device), last.to(device), 0.5).cpu(), middle))
        plain.append(psnr(blend(first, last), middle))
    return sum(ours) / len(ours), sum(plain) / len(plain)


def table(net, path, count):
    methods = {"blend": blend, "ours": lambda a, b: interpolate(net, a, b, 0.5)}
    try:
        import cv2  # noqa: F401

        methods["dis"] = dis
    except ImportError:
        pass
    triplets = clip_triplets(path, count)
    values = {name: [] for name in methods}
    seconds = 0.0
    for first, middle, last in triplets:
        first, middle, last = tensor(first), tensor(middle), tensor(last)
        for name, method in methods.items():
            began = time.time()
            guess = (method(first, last).clamp(0, 1) * 255).round() / 255
            seconds += (time.time() - began) * (name == "ours")
            values[name].append((psnr(guess, middle), ssim(guess, middle)))
    result = {name: {"psnr_db": round(float(np.mean([v[0] for v in x])), 2), "ssim": round(float(np.mean([v[1] for v in x])), 4)} for name, x in values.items()}
    wins = sum(a[0] > b[0] for a, b in zip(values["ours"], values["blend"]))
    return {"clip": Path(path).stem, "size": list(triplets[0][0].shape[1::-1]), "triplets": len(triplets), **result,
            "ours_better_than_blend": wins, "seconds_per_frame": round(seconds / len(triplets), 3)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights")
    p.add_argument("clips", nargs="+")
    p.add_argument("--count", type=int, help="at most so many triplets a clip")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--json")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    net = load(args.weights)
    rows = []
    for path in args.clips:
        rows.append(table(net, path, args.count))
        print(json.dumps(rows[-1]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
