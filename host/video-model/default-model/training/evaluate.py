"""Judges an exported folder: `python evaluate.py --weights ../weights --run RUN --out RUN/evaluation.json`.

For prompts seen in training and for held-out (shape, colour, motion) triples: the share of clips the judge reads as asked, beside
real clips, real clips through the autoencoder, and chance. Then image-conditioned modes: how well known frames come back and what
the judge reads. Last, a contact sheet of fixed prompts with seeds 0 to 11.
"""
import argparse
import json
import time
from pathlib import Path

import torch

import judge as judging
from folder import Model
from renderer import ATTRIBUTES, Renderer, captions, contact_sheet, key_times
from sampling import GUIDANCE, KEY_FRAMES, SHIFT, SIZE, STEPS, generate, grey_latents

SHEET_PROMPTS = [
    "a red circle moves left on a white background", "a yellow star moves right in the night sky", "a blue square stays still over a meadow",
    "a purple heart grows on a white background", "a green triangle moves up in the night sky", "an orange circle falls over a meadow",
    "a red heart moves up over a meadow", "a blue star moves down on a white background", "a yellow square moves left in the night sky",
    "a purple triangle stays still on a white background", "an orange star grows in the night sky", "a green circle moves right on a white background",
]
MODES = {"first frame": [0], "first and last": [0, KEY_FRAMES - 1], "first three": [0, 1, 2], "every other": list(range(0, KEY_FRAMES, 2))}


def decibels(a, b):
    return round(-10 * torch.log10((a - b).square().mean() / 4).item(), 2)


class Evaluation:
    def __init__(self, model, judge, steps, guidance, shift):
        self.model, self.judge, self.options = model, judge, {"steps": steps, "guidance": guidance, "shift": shift}
        self.renderer, self.grey = Renderer(model.device), grey_latents(model.vae)
        self.empty = model.text([""])

    def sample(self, texts, seed, known=None, mask=None, part=16):
        """Clips of the texts; the noise of text i comes from seed + i."""
        size = self.grey.shape
        noise = torch.stack([torch.randn(size[1], KEY_FRAMES, *size[3:], generator=torch.Generator().manual_seed(seed + i)) for i in range(len(texts))])
        clips = []
        for i in range(0, len(texts), part):
            rows = slice(i, i + part)
            given = {} if known is None else {"known": known[rows], "mask": mask}
            with torch.no_grad(), torch.autocast(self.model.device.type, torch.bfloat16):
                latents = generate(self.model.transformer, self.model.text(texts[rows]), self.empty, noise[rows].to(self.model.device), self.grey, **given, **self.options)
                clips.append(self.model.vae.decode(latents))
        return torch.cat(clips)

    def verdicts(self, clips, scene):
        return judging.verdicts(self.judge, clips, scene)

    def prompts(self, count, held_out):
        scene = self.renderer.sample(count, torch.Generator().manual_seed(99 + held_out), held_out)
        real = self.renderer.render(scene, key_times(KEY_FRAMES), SIZE)
        start = time.time()
        made = self.sample(captions(scene), 1000)
        seconds = (time.time() - start) / count
        coded = torch.cat([self.model.vae.decode(self.model.vae.encode(part)) for part in real.split(16)])
        result = {"generated": self.verdicts(made, scene), "real": self.verdicts(real, scene), "real through the autoencoder": self.verdicts(coded, scene),
                  "autoencoder_psnr_db": decibels(coded, real), "seconds_a_clip": round(seconds, 2)}
        return result, scene, real

    def conditioned(self, scene, real):
        result, known = {}, self.model.vae.encode(real)
        for name, index in MODES.items():
            mask = torch.zeros(1, 1, KEY_FRAMES, 1, 1, device=self.model.device)
            mask[:, :, index] = 1
            clips = self.sample(captions(scene), 2000, known, mask)
            rest = [i for i in range(KEY_FRAMES) if i not in index]
            result[name] = {"known_frames_psnr_db": decibels(clips[:, :, index], real[:, :, index]), "other_frames_psnr_db": decibels(clips[:, :, rest], real[:, :, rest]),
                            "judge": self.verdicts(clips, scene)}
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder with judge.pt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, default=96, help="prompts of each kind")
    parser.add_argument("--conditioned", type=int, default=24, help="clips for each image-conditioned mode; 0 for none")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--shift", type=float, default=SHIFT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    evaluation = Evaluation(Model(args.weights, args.device), judging.load(args.run / "judge.pt", args.device), args.steps, args.guidance, args.shift)
    result = {"prompts_of_each_kind": args.count, **evaluation.options, "chance": {name: round(1 / len(values), 3) for name, values in ATTRIBUTES.items()}}
    result["seen"], scene, real = evaluation.prompts(args.count, held_out=False)
    print(json.dumps(result["seen"]), flush=True)
    if args.conditioned:
        result["held_out"] = evaluation.prompts(args.count, held_out=True)[0]
        few = {name: value[: args.conditioned] for name, value in scene.items()}
        result["image_conditioned"] = evaluation.conditioned(few, real[: args.conditioned])
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.sheet:
        contact_sheet(evaluation.sample(SHEET_PROMPTS, 0), args.sheet, 64)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
