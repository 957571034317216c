"""A picture autoencoder with the structure and names of diffusers' `AutoencoderKLWan`, two-dimensional while training.

Wan's causal 3x3x3 kernels see the frame itself in their last tap; with every other tap zero and no temporal down-sampling each
frame is coded by itself: 8 key frames stay 8 latent frames. `wan_state` writes the weights that way.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

POSTERIOR_STD = 0.2  # fixed, so that the decoder forgives small errors of the latents


class ChannelNorm(nn.Module):
    """Each pixel's channels scaled to length sqrt(C), times gamma."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12) * self.gamma.to(x.dtype)


def conv3(a, b):
    return nn.Conv2d(a, b, 3, padding=1)


class ResBlock(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = ChannelNorm(a), conv3(a, b), ChannelNorm(b), conv3(b, b)
        self.conv_shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + self.conv_shortcut(x)


class FrameAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.to_qkv, self.proj = ChannelNorm(channels), nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = ((q * x.shape[1] ** -0.5) @ k.transpose(1, 2)).softmax(-1).to(v.dtype) @ v
        return x + self.proj(y.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels, up):
        super().__init__()
        if up:
            self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"), conv3(channels, channels // 2))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x):
        return self.resample(x)


class MidBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(channels, channels), ResBlock(channels, channels)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, widths, out_channels):
        super().__init__()
        self.conv_in, blocks = conv3(3, widths[0]), []
        for level, width in enumerate(widths):
            blocks.append(ResBlock(widths[max(level - 1, 0)], width))
            if level + 1 < len(widths):
                blocks.append(Resample(width, up=False))
        self.down_blocks, self.mid_block = nn.ModuleList(blocks), MidBlock(widths[-1])
        self.norm_out, self.conv_out = ChannelNorm(widths[-1]), conv3(widths[-1], out_channels)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class UpBlock(nn.Module):
    def __init__(self, a, b, up):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(a, b), ResBlock(b, b)])
        self.upsamplers = nn.ModuleList([Resample(b, up=True)] if up else [])

    def forward(self, x):
        for block in [*self.resnets, *self.upsamplers]:
            x = block(x)
        return x


class Decoder(nn.Module):
    def __init__(self, widths, in_channels):
        super().__init__()
        down = widths[::-1]
        self.conv_in, self.mid_block = conv3(in_channels, down[0]), MidBlock(down[0])
        inputs = [down[0]] + [width // 2 for width in down[:-1]]  # an up-sampler halves the channels
        self.up_blocks = nn.ModuleList(UpBlock(a, b, up=i + 1 < len(down)) for i, (a, b) in enumerate(zip(inputs, down)))
        self.norm_out, self.conv_out = ChannelNorm(down[-1]), conv3(down[-1], 3)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class FrameVae(nn.Module):
    """16x smaller each way with five levels. `encode` and `decode` speak normalised latents."""

    def __init__(self, base=8, latent_channels=12, multipliers=(1, 2, 4, 8, 8)):
        super().__init__()
        z, widths = latent_channels, [base * m for m in multipliers]
        self.config = {
            "_class_name": "AutoencoderKLWan", "base_dim": base, "z_dim": z, "dim_mult": list(multipliers), "num_res_blocks": 1,
            "attn_scales": [], "temperal_downsample": [False] * (len(widths) - 1), "dropout": 0.0, "latents_mean": [0.0] * z,
            "latents_std": [1.0] * z, "is_residual": False, "in_channels": 3, "out_channels": 3, "patch_size": None,
            "scale_factor_temporal": 1, "scale_factor_spatial": 2 ** (len(widths) - 1),
        }
        self.encoder, self.decoder = Encoder(widths, 2 * z), Decoder(widths, z)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)
        self.reset()

    def reset(self):
        """Unit-variance convolutions and silent residual branches: with the default start training stalls."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (ResBlock, FrameAttention)):
                nn.init.zeros_((module.conv2 if isinstance(module, ResBlock) else module.proj).weight)

    @property
    def latent_channels(self):
        return self.config["z_dim"]

    @property
    def scale(self):
        return self.config["scale_factor_spatial"]

    def mean(self, pictures):
        """(N,3,H,W) -> (N,z,H/16,W/16), not normalised."""
        return self.quant_conv(self.encoder(pictures))[:, : self.latent_channels].float()

    def picture(self, latents):
        return self.decoder(self.post_quant_conv(latents)).float()

    def set_statistics(self, latents):
        """One mean a channel but one deviation for all: channels that carry little stay small instead of becoming noise."""
        self.config["latents_mean"] = latents.mean((0, 2, 3)).tolist()
        self.config["latents_std"] = [(latents - latents.mean((0, 2, 3), keepdim=True)).std().item()] * self.latent_channels

    def _statistics(self, like):
        mean = like.new_tensor(self.config["latents_mean"]).view(-1, 1, 1)
        return mean, self.config["latents_std"][0]

    def encode(self, video):
        """(B,3,F,H,W) in [-1,1] -> normalised posterior means (B,z,F,h,w)."""
        frames = video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        latents = self.mean(frames)
        mean, std = self._statistics(latents)
        return ((latents - mean) / std).unflatten(0, (len(video), -1)).transpose(1, 2)

    def decode(self, latents):
        frames = latents.float().transpose(1, 2).flatten(0, 1)
        mean, std = self._statistics(frames)
        pictures = self.picture((frames * std + mean).contiguous(memory_format=torch.channels_last))
        return pictures.clamp(-1, 1).unflatten(0, (len(latents), -1)).transpose(1, 2)

    def wan_state(self):
        """The state dict of AutoencoderKLWan; its log-variance rows hold the fixed posterior."""
        z, state = self.latent_channels, {}
        for name, value in self.state_dict().items():
            value = value.detach().float().clone()
            flat = ".attentions." in name or ".resample." in name  # two-dimensional in Wan as well
            if name == "quant_conv.weight":
                value[z:] = 0
            if name == "quant_conv.bias":
                value[z:] = 2 * torch.tensor(POSTERIOR_STD).log()
            if name.endswith("gamma") and not flat:
                value = value[..., None]
            elif value.dim() == 4 and not flat:
                taps = value.shape[-1]
                value = F.pad(value[:, :, None], (0, 0, 0, 0, taps - 1, 0))
            state[name] = value.contiguous()
        return state

    def load_wan_state(self, state):
        mine = self.state_dict()
        self.load_state_dict({name: (v[:, :, -1] if v.dim() == 5 else v).reshape(mine[name].shape).float() for name, v in state.items()})

    @staticmethod
    def from_config(config):
        vae = FrameVae(config["base_dim"], config["z_dim"], config["dim_mult"])
        vae.config.update(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
        return vae
