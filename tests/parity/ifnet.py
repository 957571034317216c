"""Makes the goldens of the frame interpolator (IFNet) with an independent implementation of RIFE 4.25 as the oracle.

The oracle is the PyPI package `saibyo` 0.14.0 (MIT). Its `IFNet` has RIFE's widths built in, so its blocks are replaced by
blocks of its own class at the widths of the case. Only that one file of the package is loaded.

    pip install torch numpy safetensors && pip install --no-deps saibyo==0.14.0
    python tests/parity/ifnet.py tiny
    python tests/parity/ifnet.py default

`ifnet_tiny.safetensors`: random weights, 72x56 pictures, per-block flows and masks.
`ifnet_default.safetensors`: the shipped weights on a 128x96 pair.

Tensors, all float32 unless said: `weights.NAME` (float16, tiny only); `input.first`, `input.last` (uint8, (3,H,W): divide by 255);
`output.tTT` (3,H,W), the frame at t = 0.TT, not clamped; `block.I.flow` (4,H/4,W/4) and `block.I.mask` (1,H/4,W/4) after block I at
the metadata's `blocks_t`: every fourth pixel of the padded picture, from pixel (2,2); masks before the sigmoid.
Metadata: `config` (the JSON of config.json), `times`, `pad` (zeros to the right and below to a multiple of 64), `oracle`.
"""
import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
DEFAULT = HERE.parent.parent / "host/video-model/default-model/interpolator"
ORACLE = "saibyo 0.14.0, modules/interpolation/ifnet.py"


def oracle_module():
    """The oracle's network file, without the package's imports (video codecs, a command line)."""
    package = importlib.util.find_spec("saibyo")
    if package is None:
        sys.exit("the oracle is missing: pip install --no-deps saibyo==0.14.0")
    path = Path(package.submodule_search_locations[0]) / "modules/interpolation/ifnet.py"
    spec = importlib.util.spec_from_file_location("oracle_ifnet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle(widths):
    module = oracle_module()
    net = module.IFNet(torch.device("cpu"))
    for i, width in enumerate(widths):
        setattr(net, f"block{i}", module.IFBlock(15 if i == 0 else 28, c=width))
    return net.eval()


def picture(height, width, shift, generator_seed):
    """A smooth random colour picture, moved by `shift` pixels (x, y): sums of sines, so that rounding errors stay small."""
    g = torch.Generator().manual_seed(generator_seed)
    y, x = torch.meshgrid(torch.arange(height) - shift[1], torch.arange(width) - shift[0], indexing="ij")
    waves = torch.rand(3, 5, 4, generator=g)
    fx, fy, phase, gain = (waves[..., k, None, None] for k in range(4))
    value = (torch.sin(0.05 + fx * 0.5 * x + (fy - 0.5) * 0.6 * y + 6.28 * phase) * (0.3 + gain)).sum(1)
    return torch.sigmoid(value)


def pair(height, width, shift, seed):
    """Two frames: a textured background that pans, and a flat disc that moves the other way."""
    frames = []
    for k, side in enumerate((-0.5, 0.5)):
        frame = picture(height, width, (shift[0] * side, shift[1] * side), seed)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = (width * 0.55 - 2 * shift[0] * side, height * 0.45 + shift[1] * side)
        distance = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).sqrt()
        cover = (min(height, width) * 0.22 - distance + 0.5).clamp(0, 1)
        colour = torch.tensor([0.85, 0.25, 0.15]).view(3, 1, 1)
        frames.append(frame + (colour - frame) * cover)
    return frames


def randomise(net, seed):
    """Random weights that move pixels by several pixels, past the border too, with masks on both sides of zero."""
    g = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        fan_in = p[0].numel() if p.dim() == 4 else 1
        if name.endswith("beta"):
            p.data = 0.4 + 0.4 * torch.rand(p.shape, generator=g)
        elif name.endswith("bias"):
            p.data = 0.1 * torch.randn(p.shape, generator=g)
        else:
            p.data = torch.randn(p.shape, generator=g) * (2.5 if ".conv0." in name else 1.0) * fan_in**-0.5
    for i, scale in enumerate((16, 8, 4, 2, 1)):
        weight = getattr(net, f"block{i}").lastconv[0].weight.data  # its outputs, four sub-pixels each: flow 0..16, mask 16..20
        weight[:, :16] *= 6 / scale**0.75
        weight[:, 16:20] *= 6
    for p in net.parameters():
        p.data = p.data.half().float()


def run(net, first, last, t):
    h, w = first.shape[1:]
    pad = (0, -w % 64, 0, -h % 64)
    x = torch.cat([F.pad(first[None], pad), F.pad(last[None], pad)], 1)
    masks = []
    hooks = [getattr(net, f"block{i}").register_forward_hook(lambda m, a, out: masks.append(out[1])) for i in range(5)]
    with torch.no_grad():
        flows, _, merged = net(x, t, [16, 8, 4, 2, 1])
    for hook in hooks:
        hook.remove()
    return merged[4][0, :, :h, :w], flows, masks


def make(net, config, name, size, times, blocks_t, seed, weights):
    bytes_first, bytes_last = ((x * 255).round().to(torch.uint8) for x in pair(*size, (7.0, -3.0), seed))
    tensors = {"input.first": bytes_first, "input.last": bytes_last}
    first, last = bytes_first.float() / 255, bytes_last.float() / 255
    for t in times:
        frame, flows, masks = run(net, first, last, t)
        tensors[f"output.t{round(t * 100):02d}"] = frame
        if t == blocks_t:
            for i in range(5):
                tensors[f"block.{i}.flow"] = flows[i][0, :, 2::4, 2::4]
                tensors[f"block.{i}.mask"] = masks[i][0, :, 2::4, 2::4]
                print(f"block {i}: flow std {flows[i].std():.2f} px, largest {flows[i].abs().max():.1f}; mask std {masks[i].std():.2f}")
        print(f"t={t}: output mean {frame.mean():.4f} std {frame.std():.4f}")
    if weights:
        tensors.update({f"weights.{k}": v.half() for k, v in net.state_dict().items()})
    path = HERE / "goldens" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    metadata = {"config": json.dumps(config), "times": json.dumps(times), "blocks_t": str(blocks_t), "oracle": ORACLE,
                "pad": "zeros to the right and below to a multiple of 64"}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def tiny():
    widths = [8, 6, 6, 6, 4]
    net = oracle(widths)
    randomise(net, 1)
    config = {"_class_name": "IFNet", "widths": widths, "scales": [16, 8, 4, 2, 1], "head": 16}
    make(net, config, "ifnet_tiny", (56, 72), [0.5, 0.3], 0.5, 11, weights=True)


def default():
    config = json.loads((DEFAULT / "config.json").read_text())
    net = oracle(config["widths"])
    state = {k: v.float() for k, v in load_file(DEFAULT / "model.safetensors").items()}
    net.load_state_dict(state)
    make(net, config, "ifnet_default", (96, 128), [0.5, 0.25], 0.5, 12, weights=False)


if __name__ == "__main__":
    {"tiny": tiny, "default": default}[sys.argv[1] if len(sys.argv) > 1 else "tiny"]()
