"""Loads an exported folder, or the autoencoder alone, into the training classes, which sample faster than the libraries' own."""
import torch

from export import load_part
from text import TextEncoder
from transformer import VideoTransformer
from vae import FrameVae


def load_vae(folder):
    state, config = load_part(folder)
    vae = FrameVae.from_config(config)
    vae.load_wan_state(state)
    return vae.to(memory_format=torch.channels_last).eval().requires_grad_(False)


class Model:
    def __init__(self, folder, device="cpu"):
        self.vae = load_vae(folder / "vae")
        state, config = load_part(folder / "transformer")
        self.transformer = VideoTransformer.from_config(config)
        self.transformer.load_state_dict(state)
        self.text = TextEncoder()
        self.text.bert.load_state_dict(load_part(folder / "text_encoder", "model.safetensors")[0])
        for part in (self.vae, self.transformer, self.text):
            part.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
