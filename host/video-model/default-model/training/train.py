"""Trains the video transformer and the text encoder together: `python train.py --run RUN --until 60`. Run again to resume.

The clock decides: the rate holds, then falls to zero over the last quarter of `--until` minutes of training, all runs of the command
together. Clips are drawn and encoded into a bank of latents that is renewed as training goes; a first share of the time goes to
single frames, eight times cheaper, which teach what the words look like.
"""
import argparse
import random
import time
from pathlib import Path

import torch

from folder import load_vae
from muon import Muon
from renderer import ATTRIBUTES, Renderer, captions, contact_sheet, key_times
from sampling import KEY_FRAMES, SHIFT, SIZE, generate, grey_latents, model_input
from text import TextEncoder
from transformer import VideoTransformer


class Bank:
    """Latents of rendered clips with their scenes; the oldest give way once it is full."""

    def __init__(self, vae, renderer, capacity, seed):
        self.vae, self.renderer, self.capacity = vae, renderer, capacity
        self.generator, self.latents, self.scenes, self.drawn = torch.Generator().manual_seed(seed), [], [], 0

    @torch.no_grad()
    def add(self, count):
        scene = self.renderer.sample(count, self.generator)
        clips = self.renderer.render(scene, key_times(KEY_FRAMES), SIZE)
        with torch.autocast(clips.device.type, torch.bfloat16):
            latents = self.vae.encode(clips).half()
        attributes = torch.stack([scene[name] for name in ATTRIBUTES], 1)
        for pair in zip(latents, attributes):
            slot = self.drawn % self.capacity
            for store, value in zip((self.latents, self.scenes), pair):
                store[slot:slot + 1] = [value]
            self.drawn += 1

    def batch(self, count):
        chosen = random.choices(range(len(self.latents)), k=count)
        scenes = torch.stack([self.scenes[i] for i in chosen])
        return torch.stack([self.latents[i] for i in chosen]).float(), dict(zip(ATTRIBUTES, scenes.unbind(1)))


def known_frames(batch, frames, device):
    """Masks (B,1,F,1,1): 66 % none, 13 % first, 7 % first + last, 5 % the first few, 9 % at random; never all."""
    if frames == 1:
        return torch.zeros(batch, 1, 1, 1, 1, device=device)
    index, kind = torch.arange(frames), torch.rand(batch, 1)
    first, ends = (index == 0).expand(batch, -1), ((index == 0) | (index == frames - 1)).expand(batch, -1)
    prefix, scattered = index < torch.randint(2, frames // 2 + 1, (batch, 1)), torch.rand(batch, frames) < 0.4
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    for choice, low, high in ((first, 0.66, 0.79), (ends, 0.79, 0.86), (prefix, 0.86, 0.91), (scattered, 0.91, 1.0)):
        mask |= choice & (kind >= low) & (kind < high)
    mask &= ~mask.all(1, keepdim=True)
    return mask.float().view(batch, 1, frames, 1, 1).to(device)


def flow_loss(transformer, text, latents, mask, grey, rope):
    """Rectified flow: the velocity is noise - latents, at times of a logit-normal law moved by the shift. Known frames count a fifth."""
    batch = len(latents)
    time = torch.sigmoid(torch.randn(batch, device=latents.device))
    time = SHIFT * time / (1 + (SHIFT - 1) * time)
    t, noise = time.view(-1, 1, 1, 1, 1), torch.randn_like(latents)
    velocity = transformer(model_input((1 - t) * latents + t * noise, mask, latents, grey), time * 1000, text, rope)
    error = (velocity.float() - (noise - latents)).square().mean((1, 3, 4))
    return (error * (1 - 0.8 * mask.flatten(1))).mean()


class Trainer:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.vae, self.renderer = load_vae(args.run / "vae").to(self.device), Renderer(self.device)
        self.encoder = TextEncoder().to(self.device)
        self.encoder.load_state_dict(torch.load(args.run / "text.pt", map_location=self.device))
        self.transformer = VideoTransformer(self.vae.latent_channels, self.encoder.bert.config.hidden_size).to(self.device)
        self.parts = torch.nn.ModuleDict({"transformer": self.transformer, "text": self.encoder})
        named = dict(self.parts.named_parameters())
        matrices = [p for n, p in named.items() if n.startswith("transformer.blocks.") and p.dim() == 2]
        small = [p for n, p in named.items() if n.startswith("transformer.") and not (n.startswith("transformer.blocks.") and p.dim() == 2)]
        words = [p for n, p in named.items() if n.startswith("text.")]
        adam = torch.optim.AdamW([{"params": small, "share": 1.0}, {"params": words, "share": 0.3}], betas=(0.9, 0.95), weight_decay=0.0)
        muon = Muon(matrices, lr=args.rate)
        muon.param_groups[0]["share"] = 1.0
        self.optimisers, self.named = [muon, adam], named
        self.average = {n: p.detach().clone() for n, p in named.items()}
        self.step, self.clips, self.seconds = 0, 0, 0.0
        self.grey = grey_latents(self.vae)
        self.checkpoint = args.run / "last.pt"
        if self.checkpoint.exists():
            self.resume()
        if args.compile:
            for block in self.transformer.blocks:
                block.compile(dynamic=False)

    def resume(self):
        saved = torch.load(self.checkpoint, map_location=self.device)
        self.parts.load_state_dict(saved["weights"])
        self.average = saved["average"]
        for optimiser, state in zip(self.optimisers, saved["optimisers"]):
            optimiser.load_state_dict(state)
        self.step, self.clips, self.seconds = saved["step"], saved["clips"], saved["seconds"]
        print(f"resumed at step {self.step}, {self.seconds / 60:.1f} minutes", flush=True)

    def save(self):
        part = self.checkpoint.with_suffix(".part")
        torch.save({"weights": self.parts.state_dict(), "average": self.average, "optimisers": [o.state_dict() for o in self.optimisers],
                    "step": self.step, "clips": self.clips, "seconds": self.seconds}, part)
        part.replace(self.checkpoint)

    def rate(self, progress):
        return self.args.rate * min(1, (self.step + 1) / 100) * min(1, (1 - progress) / 0.25)

    def update(self, bank, rng, progress):
        frames = 1 if progress < self.args.stills else KEY_FRAMES
        latents, scene = bank.batch(self.args.batch * (KEY_FRAMES if frames == 1 else 1))
        if frames == 1:
            moment = torch.randint(KEY_FRAMES, (len(latents),))
            latents = latents[torch.arange(len(latents)), :, moment][:, :, None]
        texts = ["" if rng.random() < 0.1 else text for text in captions(scene, rng)]
        rope = self.transformer.rope(*latents.shape[2:], self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = flow_loss(self.transformer, self.encoder(texts), latents, known_frames(len(latents), frames, self.device), self.grey, rope)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate(progress) * group["share"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step, self.clips = self.step + 1, self.clips + len(latents)
        keep = min(self.args.average, self.step / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], 1 - keep)
        return loss.item()

    @torch.no_grad()
    def sheet(self, path, count=8, width=48):
        """Contact sheet of the averaged weights: plain captions of fixed scenes, the sample of seed i below real clip i."""
        raw = {n: p.detach().clone() for n, p in self.named.items()}
        self.parts.load_state_dict(self.average, strict=False)
        scene = self.renderer.sample(count, torch.Generator().manual_seed(5))
        noise = torch.stack([torch.randn(self.grey.shape[1], KEY_FRAMES, *self.grey.shape[3:], generator=torch.Generator().manual_seed(i)) for i in range(count)])
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = generate(self.transformer, self.encoder(captions(scene)), self.encoder([""]), noise.to(self.device), self.grey)
            clips = self.vae.decode(latents)
        real = self.renderer.render(scene, key_times(KEY_FRAMES), SIZE)
        contact_sheet(torch.stack([real, clips], 1).flatten(0, 1), path, width)
        self.parts.load_state_dict(raw, strict=False)

    def run(self):
        args, rng = self.args, random.Random(time.time())
        bank = Bank(self.vae, self.renderer, args.bank, int(time.time()))
        start, before = time.time(), self.seconds
        while len(bank.latents) < min(args.bank, args.first):
            bank.add(min(args.first, 16))
        print(f"bank of {bank.drawn} after {time.time() - start:.0f}s", flush=True)
        start = saved = drawn = time.time()
        losses = []
        while (progress := self.seconds / (60 * args.until)) < 1:
            losses.append(self.update(bank, rng, progress))
            if args.bank > args.first and self.step % args.renew == 0:
                bank.add(8)
            now = time.time()
            self.seconds = before + now - start
            if self.step % args.log == 0:
                mean = sum(losses) / len(losses)
                print(f"step {self.step} {self.seconds / 60:.1f} min loss {mean:.4f} rate {self.rate(progress):.1e} clips {self.clips} bank {bank.drawn}", flush=True)
                losses.clear()
            if now - saved > 120:
                saved = now
                self.save()
            if now - drawn > 60 * args.sheet_minutes:
                drawn = now
                self.sheet(args.run / f"sheet-{self.step:06d}.png")
        self.save()
        self.sheet(args.run / "sheet-last.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder with vae/ and text.pt; checkpoints go there; outside of git")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", type=float, default=90, help="minutes of training, all runs together")
    parser.add_argument("--stills", type=float, default=0.1, help="share of the time spent on single frames, at the start")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--bank", type=int, default=12000, help="clips kept as latents")
    parser.add_argument("--first", type=int, default=256, help="clips drawn before training starts")
    parser.add_argument("--renew", type=int, default=8, help="8 fresh clips every so many steps")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log", type=int, default=50)
    parser.add_argument("--sheet-minutes", type=float, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
