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


def warp(x, flow):
    """x (B,C,H,W) sampled at each pixel's own position plus flow (B,2,H,W; x then y, in pixels); outside, the border repeats."""
    b, _, h, w = x.shape
    ys = torch.linspace(-1, 1, h, device=x.device, dtype=flow.dtype).view(1, h, 1)
    xs = torch.linspace(-1, 1, w, device=x.device, dtype=flow.dtype).view(1, 1, w)
    gx = xs + flow[:, 0] * (2 / (w - 1))
    gy = ys + flow[:, 1] * (2 / (h - 1))
    return F.grid_sample(x, torch.stack([gx, gy], -1), mode="bilinear", padding_mode="border", align_corners=True)


def resize(x, factor):
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


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
    """One refinement at 1/scale of the resolution. Returns the change of flow (4), the mask (1) and carried features (8), full size."""

    def __init__(self, inputs, width):
        super().__init__()
        self.conv0 = nn.Sequential(conv_down(inputs, width // 2), conv_down(width // 2, width))
        self.convblock = nn.Sequential(*[ResConv(width) for _ in range(8)])
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 4 * (4 + 1 + CARRIED), 4, 2, 1), nn.PixelShuffle(2))

    def forward(self, x, flow, scale):
        x = resize(x, 1 / scale)
        if flow is not None:
            x = torch.cat([x, resize(flow, 1 / scale) / scale], 1)
        out = resize(self.lastconv(self.convblock(self.conv0(x))).float(), scale)
        return out[:, :4] * scale, out[:, 4:5], out[:, 5:]


class IFNet(nn.Module):
    def __init__(self, widths, head=16, scales=SCALES):
        super().__init__()
        self.widths, self.head_width, self.scales = tuple(widths), head, tuple(scales)
        self.encode = Head(head)
        for i, width in enumerate(widths):
            inputs = 6 + 2 * FEATURES + 1 + (0 if i == 0 else 1 + CARRIED + 4)
            setattr(self, f"block{i}", IFBlock(inputs, width))

    def forward(self, first, last, t):
        """first, last: (B,3,H,W) in [0,1], H and W multiples of 64; t: (B,1,1,1).

        Returns the frame at t (B,3,H,W) and, for each block, the flows (B,4,H,W) and the mask before its sigmoid (B,1,H,W)."""
        both = torch.cat([first, last])
        f0, f1 = self.encode(both).float().chunk(2)
        plane = t.expand(-1, 1, *first.shape[2:])
        flow, flows, masks = None, [], []
        for i, scale in enumerate(self.scales):
            block = getattr(self, f"block{i}")
            if flow is None:
                flow, mask, carried = block(torch.cat([first, last, f0, f1, plane], 1), None, scale)
            else:
                a, b = torch.cat([first, f0], 1), torch.cat([last, f1], 1)
                a, b = warp(a, flow[:, :2]), warp(b, flow[:, 2:])
                seen = torch.cat([a[:, :3], b[:, :3], a[:, 3:], b[:, 3:], plane, mask, carried], 1)
                change, mask, carried = block(seen, flow, scale)
                flow = flow + change
            flows.append(flow)
            masks.append(mask)
        keep = torch.sigmoid(mask)
        frame = warp(first, flow[:, :2]) * keep + warp(last, flow[:, 2:]) * (1 - keep)
        return frame, flows, masks

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
    (folder / "config.json").write_text(json.dumps(net.config(), indent=2) + "\n")


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    net = IFNet(config["widths"], config["head"], config["scales"])
    state = load_file(Path(folder) / "model.safetensors")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return net.eval()
