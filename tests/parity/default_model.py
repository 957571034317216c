"""Golden of the committed default model, made by the libraries' own classes (transformers' BertModel, diffusers' WanTransformer3DModel,
AutoencoderKLWan and UniPCMultistepScheduler) in float32 on the CPU. Run again whenever the weights change:

    pip install torch safetensors transformers diffusers accelerate
    python tests/parity/default_model.py

Tensors of `goldens/default_model.safetensors` (float32 unless said; z = 12 latent channels, 8 key frames, 8x8 latents of 128x128 pixels):
    token_ids         (2, 32) int64      the prompt and the empty prompt: [CLS] words [SEP], then padding (id 0)
    text_states       (2, 32, 128)       BERT's last states, zero past [SEP]
    grey_latents      (1, z, 1, 8, 8)    normalised latents of a picture of zeros (mid-grey)
    picture_latents   (1, z, 1, 8, 8)    normalised latents of the picture: red rises from -1 to 1 left to right, green top to bottom, blue 0
    noise             (1, z, 8, 8, 8)
    condition         (1, 1 + z, 8, 8, 8)  [mask | known]: frame 0 is known (the picture), the others hold the grey latents
    velocity_999, velocity_500  (1, z, 8, 8, 8)  the transformer on [noise | condition] with the prompt, at timesteps 999 and 500
    timesteps (4,) int64, sigmas (5,)    of the sampler at 4 steps
    latents           (1, z, 8, 8, 8)    text-to-video (mask 0, all grey) after 4 sampler steps with classifier-free guidance from `noise`
    frame_0           (3, 128, 128) float16  the first decoded frame, clamped to [-1, 1]
The metadata hold the prompt and the guidance scale. Latents are normalised: (encoded - latents_mean) / latents_std.
"""
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import BertModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parents[1] / "host" / "video-model" / "default-model" / "weights"
PROMPT, STEPS = "A red star moves left in the night sky", 4


class Libraries:
    def __init__(self, folder):
        self.defaults = json.loads((folder / "model_index.json").read_text())["zoetrope"]
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        self.bert = BertModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False, dtype=torch.float32).eval()
        self.transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()
        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.scheduler = UniPCMultistepScheduler.from_pretrained(folder / "scheduler")
        self.mean, self.std = (torch.tensor(self.vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))

    def tokens(self, texts):
        rows = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.defaults["text_length"], return_tensors="pt")
        return rows.input_ids, rows.attention_mask

    def text_states(self, ids, mask):
        return self.bert(ids, attention_mask=mask).last_hidden_state * mask[..., None]

    def encode(self, picture):
        return (self.vae.encode(picture).latent_dist.mode() - self.mean) / self.std

    def decode(self, latents):
        return self.vae.decode(latents * self.std + self.mean).sample.clamp(-1, 1)

    def velocity(self, latents, condition, timestep, states):
        return self.transformer(torch.cat([latents, condition], 1), timestep.expand(len(latents)), states, return_dict=False)[0]

    def sample(self, noise, condition, states, steps):
        """`states`: rows of the prompt and of the empty prompt."""
        self.scheduler.set_timesteps(steps)
        latents, guidance = noise, self.defaults["guidance"]
        for timestep in self.scheduler.timesteps:
            asked, without = (self.velocity(latents, condition, timestep, row[None]) for row in states)
            latents = self.scheduler.step(without + guidance * (asked - without), timestep, latents, return_dict=False)[0]
        return latents


def gradient_picture(width, height):
    red = torch.linspace(-1, 1, width).expand(height, width)
    green = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    return torch.stack([red, green, torch.zeros(height, width)])[None, :, None]


@torch.no_grad()
def main():
    model = Libraries(WEIGHTS)
    width, height = model.defaults["size"]
    frames = model.defaults["key_frames"]
    ids, mask = model.tokens([PROMPT, ""])
    states = model.text_states(ids, mask)
    grey, picture = model.encode(torch.zeros(1, 3, 1, height, width)), model.encode(gradient_picture(width, height))
    noise = torch.randn(1, grey.shape[1], frames, *grey.shape[3:], generator=torch.Generator().manual_seed(7))
    unknown = torch.cat([torch.zeros_like(noise[:, :1]), grey.expand_as(noise)], 1)
    condition = unknown.clone()
    condition[:, :1, 0], condition[:, 1:, 0] = 1, picture[:, :, 0]
    latents = model.sample(noise, unknown, states, STEPS)
    golden = {
        "token_ids": ids, "text_states": states, "grey_latents": grey, "picture_latents": picture, "noise": noise, "condition": condition,
        "velocity_999": model.velocity(noise, condition, torch.tensor(999), states[:1]), "velocity_500": model.velocity(noise, condition, torch.tensor(500), states[:1]),
        "timesteps": model.scheduler.timesteps, "sigmas": model.scheduler.sigmas, "latents": latents, "frame_0": model.decode(latents)[0, :, 0].half(),
    }
    path = HERE / "goldens" / "default_model.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in golden.items()}, path, metadata={"prompt": PROMPT, "guidance": str(model.defaults["guidance"])})
    path.chmod(0o644)
    for name, value in golden.items():
        print(f"{name:16} {tuple(value.shape)} {value.dtype} rms {value.float().square().mean().sqrt():.4f}")


if __name__ == "__main__":
    main()
