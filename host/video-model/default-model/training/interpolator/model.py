"""IFNet: the frame interpolator's network, with the structure and the parameter names of RIFE 4.25 at any width.

Two pictures and a time t in (0, 1) go in; the flow from the frame at t to each picture, a blend mask and the frame come out.
Five blocks refine the flow from 1/16 of the resolution to full resolution; each sees the pictures warped by the flow so far.
"""
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

PAD_MULTIPLE = 64  # coarsest scale (16) times the two stride-2 convolutions (4)
SCALES = (16, 8, 4, 2, 1)
FEATURES = 4  # channels of the head's feature map of one picture
CARRIED = 8  # channels that a block hands to the next one, beside flow (4) and mask (1)


def central(x, scale, dims=(2, 3)):
    """The two central samples of each run of `scale` samples along each of dims; all samples for scales 1 and 2."""
    if scale > 2:
        for d in dims:
            x = x.unflatten(d, (-1, scale)).narrow(d + 1, scale // 2 - 1, 2).flatten(d, d + 1)
    return x


def reduce(x, scale):
    """x at 1/scale. Bilinear reduction by an even factor reads the four central pixels of each scale x scale cell, and no others."""
    return x if scale == 1 else F.avg_pool2d(central(x, scale), 2)


def enlarge(x, factor):
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def warp(x, flow, scale=1):
    """x (B,C,H,W) sampled at each pixel's own position plus flow (B,2,H,W; x then y, in pixels); outside, the border repeats.

    With scale, flow is central(flow, scale) and so is the result: what reduce() at that scale would read of the full warp."""
    h, w = x.shape[2:]
    ys = central(torch.linspace(-1, 1, h, device=x.device, dtype=flow.dtype), scale, (0,)).view(1, -1, 1)
    xs = central(torch.linspace(-1, 1, w, device=x.device, dtype=flow.dtype), scale, (0,)).view(1, 1, -1)
    dx, dy = flow.unbind(1)
    where = torch.stack([xs + dx * (2 / (w - 1)), ys + dy * (2 / (h - 1))], -1)
    return F.grid_sample(x, where, mode="bilinear", padding_mode="border", align_corners=True)


class Head(nn.Module):
    """Picture (B,3,H,W) to a small feature map (B,4,H,W)."""

    def __init__(self, width):
        super().__init__()
        self.cnn0 = nn.Conv2d(3, width, 3, 2, 1)
        self.cnn1 = nn.Conv2d(width, width, 3, 1, 1)
        self.cnn2 = nn.Conv2d(width, width, 3, 1, 1)
        self.cnn3 = nn.ConvTranspose2d(width, FEATURES, 4, 2, 1)

    def forward(self, x):
        for conv in (self.cnn0, self.cnn1, self.cnn2):
            x = F.leaky_relu(conv(x), 0.2)
        return self.cnn3(x)


class ResConv(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        return F.leaky_relu(self.conv(x) * self.beta + x, 0.2)


def conv_down(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(0.2))


class IFBlock(nn.Module):
    """One refinement at 1/scale of the resolution: input channels to change of flow (4), mask (1) and carried features (8)."""

    def __init__(self, inputs, width):
        super().__init__()
        self.conv0 = nn.Sequential(conv_down(inputs, width // 2), conv_down(width // 2, width))
        self.convblock = nn.Sequential(*[ResConv(width) for _ in range(8)])
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 4 * (4 + 1 + CARRIED), 4, 2, 1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.lastconv(self.convblock(self.conv0(x))).float().split([4, 1 + CARRIED], 1)


class IFNet(nn.Module):
    """RIFE resizes every block's output to full size and the next block's input back down. Here mask and carried features are
    enlarged by two instead, which is the same (each scale is half of the one before), and only the pixels that the reduction
    reads are warped."""

    def __init__(self, widths, head=16, scales=SCALES):
        super().__init__()
        if any(a != 2 * b for a, b in zip(scales, scales[1:])) or scales[-1] != 1 or len(scales) != len(widths):
            raise ValueError(f"scales must halve from block to block and end at 1, one per width: {scales}, {widths}")
        self.widths, self.head_width, self.scales = tuple(widths), head, tuple(scales)
        self.encode = Head(head)
        for i, width in enumerate(widths):
            inputs = 6 + 2 * FEATURES + 1 + (0 if i == 0 else 1 + CARRIED + 4)
            setattr(self, f"block{i}", IFBlock(inputs, width))

    def forward(self, first, last, t, blocks=None):
        """first, last: (B,3,H,W) in [0,1], H and W multiples of 64; t: (B,1,1,1).

        blocks: only the first so many, the last of them at full resolution; training grows the network this way.
        Returns the frame at t (B,3,H,W), each block's flows (B,4,H,W) and its mask before the sigmoid (B,1,H/scale,W/scale)."""
        f0, f1 = self.encode(torch.cat([first, last])).float().chunk(2)
        a, b = torch.cat([first, f0], 1), torch.cat([last, f1], 1)
        flow, flows, masks = None, [], []
        for i, scale in enumerate(self.scales[-(blocks or len(self.scales)) :]):
            if flow is None:
                near0, near1 = reduce(a, scale), reduce(b, scale)
                known = []
            else:
                to0, to1 = central(flow, scale).chunk(2, 1)
                near0, near1 = (warp(x, to, scale) for x, to in ((a, to0), (b, to1)))
                near0, near1 = (F.avg_pool2d(x, 2) if scale > 1 else x for x in (near0, near1))
                known = [enlarge(carried, 2), reduce(flow, scale) / scale]
            plane = t.expand(-1, 1, *near0.shape[2:])
            (p0, g0), (p1, g1) = near0.split([3, FEATURES], 1), near1.split([3, FEATURES], 1)
            change, carried = getattr(self, f"block{i}")(torch.cat([p0, p1, g0, g1, plane, *known], 1))
            change = enlarge(change, scale) * scale
            flow = change if flow is None else flow + change
            flows.append(flow)
            masks.append(carried[:, :1])
        keep = torch.sigmoid(masks[-1])
        to0, to1 = flow.chunk(2, 1)
        return warp(first, to0) * keep + warp(last, to1) * (1 - keep), flows, masks

    def config(self):
        return {"_class_name": "IFNet", "widths": list(self.widths), "scales": list(self.scales), "head": self.head_width}


def padded(x):
    """Zeros to the right and below up to the next multiple of 64."""
    h, w = x.shape[2:]
    return F.pad(x, (0, -w % PAD_MULTIPLE, 0, -h % PAD_MULTIPLE))


@torch.no_grad()
def interpolate(net, first, last, t):
    """The frame at time t between two pictures of any size; values in [0,1]."""
    h, w = first.shape[2:]
    t = torch.as_tensor(t, dtype=first.dtype, device=first.device).reshape(-1, 1, 1, 1)
    return net(padded(first), padded(last), t)[0][..., :h, :w].clamp(0, 1)


def save(net, folder, dtype=torch.float16):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in net.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(net.config()) + "\n")


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    net = IFNet(config["widths"], config["head"], config["scales"])
    state = load_file(Path(folder) / "model.safetensors")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return net.eval()
