"""The video transformer: the arithmetic and parameter names of diffusers' `WanTransformer3DModel`, written for training speed.

One forward pass takes channels [noisy latents z | mask 1 | known latents z] and gives the velocity noise - latents. The mask is 1 on
known frames; unknown frames carry the latents of a mid-grey picture, as Wan's image-to-video does, so a single set of weights
does text-to-video (mask all zero), image-to-video, first + last frame, continuation and infill.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

EPS = 1e-6


def layer_norm(x, weight=None, bias=None):
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, EPS)


def gelu(x):
    return F.gelu(x, approximate="tanh")


class RmsNorm(nn.Module):
    """Over the whole width, before the split into heads ("across heads")."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS) * self.weight).to(x.dtype)


def rotary_angles(head_dim, frames, height, width):
    """cos and sin of (tokens, 1, head_dim / 2): channel pairs are shared out to time, rows and columns; float64 inside."""
    space = 2 * (head_dim // 6)
    axes = [(head_dim - 2 * space, frames, (frames, 1, 1)), (space, height, (1, height, 1)), (space, width, (1, 1, width))]
    angles = []
    for dim, count, shape in axes:
        rate = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        table = torch.arange(count, dtype=torch.float64)[:, None] * rate
        angles.append(table.view(*shape, -1).expand(frames, height, width, -1))
    angle = torch.cat(angles, -1).reshape(frames * height * width, 1, -1)
    return angle.cos().float(), angle.sin().float()


def rotate(x, rope):
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def attend(q, k, v):
    """Two batched products on the CPU, where the fused kernel's backward pass is several times slower at these lengths."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1, torch.float32).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = RmsNorm(width), RmsNorm(width)

    def forward(self, x, context, rope=None):
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(context)), self.to_v(context)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class Gelu(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x):
        return gelu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.net = nn.Sequential(Gelu(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, heads), Attention(width, heads)
        self.norm2, self.ffn = nn.LayerNorm(width, EPS), FeedForward(width, ffn)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x, text, modulation, rope):
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.scale_shift_table + modulation.float()).chunk(6, 1)
        y = (layer_norm(x) * (1 + scale_a) + shift_a).to(x.dtype)
        x = (x.float() + self.attn1(y, y, rope) * gate_a).to(x.dtype)
        x = x + self.attn2(layer_norm(x, self.norm2.weight, self.norm2.bias).to(x.dtype), text)
        y = (layer_norm(x) * (1 + scale_f) + shift_f).to(x.dtype)
        return (x.float() + self.ffn(y).float() * gate_f).to(x.dtype)


class TwoLinears(nn.Module):
    def __init__(self, inner, outer, activation):
        super().__init__()
        self.linear_1, self.linear_2, self.activation = nn.Linear(inner, outer), nn.Linear(outer, outer), activation

    def forward(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    def __init__(self, width, freq_dim, text_dim):
        super().__init__()
        self.time_embedder, self.time_proj = TwoLinears(freq_dim, width, F.silu), nn.Linear(width, 6 * width)
        self.text_embedder = TwoLinears(text_dim, width, gelu)
        rate = torch.exp(-math.log(10000.0) * torch.arange(freq_dim // 2) / (freq_dim // 2))
        self.register_buffer("rate", rate, persistent=False)

    def forward(self, timestep, text):
        angle = timestep.float()[:, None] * self.rate
        time = self.time_embedder(torch.cat([angle.cos(), angle.sin()], -1))
        return time, self.time_proj(F.silu(time)).unflatten(1, (6, -1)), self.text_embedder(text)


class VideoTransformer(nn.Module):
    """Config keys are those of `transformer/config.json`."""

    def __init__(self, latent_channels=12, text_dim=128, heads=4, head_dim=64, ffn_dim=1024, layers=6, patch=2):
        super().__init__()
        width = heads * head_dim
        in_channels = 2 * latent_channels + 1
        self.config = {
            "_class_name": "WanTransformer3DModel", "patch_size": [1, patch, patch], "num_attention_heads": heads,
            "attention_head_dim": head_dim, "in_channels": in_channels, "out_channels": latent_channels, "text_dim": text_dim,
            "freq_dim": 256, "ffn_dim": ffn_dim, "num_layers": layers, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
            "eps": EPS, "image_dim": None, "added_kv_proj_dim": None, "rope_max_seq_len": 64, "pos_embed_seq_len": None,
        }
        self.patch, self.head_dim, self.latent_channels = patch, head_dim, latent_channels
        self.patch_embedding = nn.Conv3d(in_channels, width, (1, patch, patch), (1, patch, patch))
        self.condition_embedder = ConditionEmbedder(width, 256, text_dim)
        self.blocks = nn.ModuleList(Block(width, heads, ffn_dim) for _ in range(layers))
        self.proj_out = nn.Linear(width, latent_channels * patch * patch)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.reset()

    def reset(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.condition_embedder.time_proj.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)

    @staticmethod
    def from_config(config):
        return VideoTransformer(config["out_channels"], config["text_dim"], config["num_attention_heads"], config["attention_head_dim"],
                                config["ffn_dim"], config["num_layers"], config["patch_size"][1])

    def rope(self, frames, height, width, device):
        """For latents of this many frames, rows and columns."""
        table = rotary_angles(self.head_dim, frames, height // self.patch, width // self.patch)
        return tuple(t.to(device) for t in table)

    def forward(self, x, timestep, text, rope):
        """x (B, 2z+1, F, H, W); timestep (B,) from 0 to 1000; text (B, L, text_dim), zero past the prompt -> (B, z, F, H, W)."""
        b, _, frames, height, width = x.shape
        p, h, w = self.patch, height // self.patch, width // self.patch
        # A convolution whose stride is its kernel is one matrix product over the patches.
        x = x.reshape(b, -1, frames, h, p, w, p).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, frames * h * w, -1)
        x = F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        time, modulation, text = self.condition_embedder(timestep, text)
        for block in self.blocks:
            x = block(x, text, modulation, rope)
        shift, scale = (self.scale_shift_table + time[:, None].float()).chunk(2, 1)
        x = self.proj_out((layer_norm(x) * (1 + scale) + shift).to(x.dtype))
        x = x.reshape(b, frames, h, w, p, p, -1).permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(b, self.latent_channels, frames, height, width)
