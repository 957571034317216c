"""The Wan transformer in plain torch, and a folder of random weights for it: a rival that needs torch and safetensors alone.

    wan_torch.py write FOLDER [--shape 1.3B|tiny] [--frames 33,81] [--size 832x480]   transformer/ and inputs-FRAMES.safetensors
    wan_torch.py check                                                                 against diffusers, on a tiny shape

Tensors have the names that diffusers gives them, so both read one file. Sizes and arithmetic are those of Wan 2.1 text to video:
everything in the weights' dtype, but norms, modulation and the time embedding in f32. Batches are of one clip.
"""
import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

TINY = dict(num_attention_heads=3, attention_head_dim=32, ffn_dim=160, num_layers=2, text_dim=48, freq_dim=64)
SHAPES = {
    "1.3B": dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096, freq_dim=256),
    "tiny": TINY,
}
CHANNELS = 16
PATCH = (1, 2, 2)
TEXT_TOKENS = 512
# One latent frame is four of the video (but the first), one latent pixel eight by eight.
STRIDES = (4, 8)


class Linear(nn.Linear):
    """A layer whose result has the dtype of its input, whatever that of its weights."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads, eps):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps) for _ in range(2))

    def forward(self, x, context, turn=lambda x: x):
        def split(x):
            return x.unflatten(-1, (self.heads, -1))

        q, k = turn(split(self.norm_q(self.to_q(x)))), turn(split(self.norm_k(self.to_k(context))))
        mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, split(self.to_v(context)))))
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


class Gelu(nn.Module):
    """`proj` and GELU: diffusers keeps the layer one level down."""

    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x):
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.net = nn.ModuleList([Gelu(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x):
        for layer in self.net:
            x = layer(x)
        return x


class Block(nn.Module):
    def __init__(self, width, heads, inner, eps):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, heads, eps), Attention(width, heads, eps)
        self.norm2 = nn.LayerNorm(width, eps)
        self.ffn = FeedForward(width, inner)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, width))
        self.eps = eps

    def modulated(self, x, scale, shift):
        return (F.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * (1 + scale) + shift).type_as(x)

    def forward(self, x, text, time, rotation):
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + time.float()).chunk(6, dim=1)
        y = self.modulated(x, scale, shift)
        x = (x.float() + self.attn1(y, y, lambda v: rotated(v, rotation)) * gate).type_as(x)
        y = F.layer_norm(x.float(), x.shape[-1:], self.norm2.weight.float(), self.norm2.bias.float(), self.eps).type_as(x)
        x = x + self.attn2(y, text)
        y = self.modulated(x, ffn_scale, ffn_shift)
        return (x.float() + self.ffn(y).float() * ffn_gate).type_as(x)


def rotated(x, rotation):
    """Neighbouring pairs of x [1, tokens, heads, width], turned by `rotation` (cos and sin, [tokens, 1, width / 2])."""
    cos, sin = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2).type_as(x)


class Embedders(nn.Module):
    def __init__(self, width, text_width, frequencies):
        super().__init__()
        self.time_embedder = nn.ModuleDict({"linear_1": Linear(frequencies, width), "linear_2": Linear(width, width)})
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = nn.ModuleDict({"linear_1": nn.Linear(text_width, width), "linear_2": nn.Linear(width, width)})
        self.frequencies = frequencies

    def time(self, timestep, dtype):
        half = self.frequencies // 2
        angles = timestep.float()[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, device=timestep.device) / half)
        layers = self.time_embedder
        embedded = layers["linear_2"](F.silu(layers["linear_1"](torch.cat((angles.cos(), angles.sin()), -1)))).to(dtype)
        return embedded, self.time_proj(F.silu(embedded))

    def text(self, states):
        return self.text_embedder["linear_2"](F.gelu(self.text_embedder["linear_1"](states), approximate="tanh"))


class WanTransformer(nn.Module):
    def __init__(self, num_attention_heads, attention_head_dim, ffn_dim, num_layers, text_dim, freq_dim, eps=1e-6):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv3d(CHANNELS, width, PATCH, PATCH)
        self.condition_embedder = Embedders(width, text_dim, freq_dim)
        self.blocks = nn.ModuleList([Block(width, num_attention_heads, ffn_dim, eps) for _ in range(num_layers)])
        self.proj_out = nn.Linear(width, CHANNELS * math.prod(PATCH))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, width))
        self.head_width, self.eps = attention_head_dim, eps

    def rotation(self, grid, device):
        """cos and sin of every token's angles: height and width turn a third of the head each, time the rest."""
        side = 2 * (self.head_width // 6)
        parts = []
        for axis, width in enumerate((self.head_width - 2 * side, side, side)):
            rates = 1.0 / 1e4 ** (torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
            angles = torch.outer(torch.arange(grid[axis], dtype=torch.float64, device=device), rates)
            shape = [1, 1, 1, angles.shape[1]]
            shape[axis] = grid[axis]
            parts.append(angles.view(shape).expand(*grid, -1))
        angles = torch.cat(parts, -1).reshape(math.prod(grid), 1, -1)
        return angles.cos().float(), angles.sin().float()

    def forward(self, latent, timestep, text):
        """latent [1, c, f, h, w], timestep [1], text [1, tokens, text_dim]: the velocity, like latent."""
        grid = [size // patch for size, patch in zip(latent.shape[2:], PATCH)]
        rotation = self.rotation(grid, latent.device)
        x = self.patch_embedding(latent).flatten(2).transpose(1, 2).contiguous()
        embedded, time = self.condition_embedder.time(timestep, text.dtype)
        text = self.condition_embedder.text(text)
        time = time.unflatten(1, (6, -1))
        for block in self.blocks:
            x = block(x, text, time, rotation)
        shift, scale = (self.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((F.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * (1 + scale) + shift).type_as(x))
        x = x.view(1, *grid, *PATCH, CHANNELS).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def cast(self, dtype):
        """Weights in `dtype`, but those that diffusers keeps in f32 there too."""
        kept = ("time_embedder", "scale_shift_table", "norm2")
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if any(part in name for part in kept) else dtype)
        return self


def random_weight(name, shape, generator):
    """Values of a size that keeps activations near one."""
    if name.endswith("scale_shift_table"):
        return 0.1 * torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) == 1:
        return float("norm" in name and name.endswith("weight")) + 0.02 * torch.randn(shape, generator=generator, device=generator.device)
    return torch.randn(shape, generator=generator, device=generator.device) / math.sqrt(math.prod(shape[1:]))


def latent_shape(frames, size):
    return (CHANNELS, (frames - 1) // STRIDES[0] + 1, size[1] // STRIDES[1], size[0] // STRIDES[1])


def write(folder, shape, frames, size, device):
    from safetensors.torch import save_file

    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    with torch.device("meta"):
        model = WanTransformer(**config)
    generator = torch.Generator(device).manual_seed(0)
    weights = {name: random_weight(name, tuple(value.shape), generator).bfloat16().cpu() for name, value in model.state_dict().items()}
    save_file(weights, folder / "transformer/diffusion_pytorch_model.safetensors")
    published = dict(_class_name="WanTransformer3DModel", patch_size=PATCH, in_channels=CHANNELS, out_channels=CHANNELS, cross_attn_norm=True,
                     qk_norm="rms_norm_across_heads", eps=1e-6)
    (folder / "transformer/config.json").write_text(json.dumps(published | config, indent=2))
    generator = torch.Generator("cpu").manual_seed(1)
    for count in frames:
        inputs = {"latent": torch.randn(latent_shape(count, size), generator=generator), "timestep": torch.tensor([500.0]),
                  "text": torch.randn((TEXT_TOKENS, config["text_dim"]), generator=generator)}
        save_file(inputs, folder / f"inputs-{count}.safetensors")
    total = sum(value.numel() * value.itemsize for value in weights.values())
    print(f"{folder}: {shape}, {total / 1e9:.2f} GB")


def load(folder, dtype, device):
    from safetensors.torch import load_file

    config = json.loads((folder / "transformer/config.json").read_text())
    names = next(iter(SHAPES.values()))
    with torch.device("meta"):
        model = WanTransformer(**{name: config[name] for name in names})
    model.load_state_dict(load_file(folder / "transformer/diffusion_pytorch_model.safetensors", device=str(device)), assign=True)
    return model.cast(dtype).requires_grad_(False).eval()


def relative_rmse(value, reference):
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


def check():
    from diffusers import WanTransformer3DModel

    generator = torch.Generator("cpu").manual_seed(0)
    ours, theirs = WanTransformer(**TINY), WanTransformer3DModel(**TINY, patch_size=PATCH, in_channels=CHANNELS, out_channels=CHANNELS)
    weights = {name: random_weight(name, tuple(value.shape), generator) for name, value in theirs.state_dict().items()}
    latent, text = torch.randn((1, CHANNELS, 3, 6, 10), generator=generator), torch.randn((1, 7, TINY["text_dim"]), generator=generator)
    with torch.inference_mode():
        for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]:
            for model in (ours, theirs):
                model.load_state_dict(weights)
            reference = theirs.float() if dtype == torch.float32 else WanTransformer.cast(theirs, dtype)
            inputs = latent.to(dtype), torch.tensor([500.0]), text.to(dtype)
            error = relative_rmse(ours.cast(dtype)(*inputs), reference(*inputs, return_dict=False)[0])
            print(f"{dtype}: relative RMSE {error:.1e} to diffusers")
            assert error < tolerance, f"more than {tolerance}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--shape", choices=SHAPES, default="1.3B")
    writing.add_argument("--frames", default="33,81")
    writing.add_argument("--size", default="832x480")
    commands.add_parser("check")
    args = parser.parse_args()
    if args.command == "check":
        return check()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write(args.folder, args.shape, [int(n) for n in args.frames.split(",")], [int(n) for n in args.size.split("x")], device)


if __name__ == "__main__":
    main()
