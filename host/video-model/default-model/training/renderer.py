"""The closed world of the default model: captioned clips of one moving shape, drawn in batches with torch. There are no data files.

A scene is a dict of small tensors, one row per clip. Coordinates are x right, y down, both -1 to 1 across the frame; time runs 0 to 1.
"""
import math
import random

import torch
import torch.nn.functional as F

SHAPES = {"circle": ["circle", "ball", "disc"], "square": ["square", "box"], "triangle": ["triangle"], "star": ["star"], "heart": ["heart"]}
COLOURS = {
    "red": (0.90, 0.13, 0.15), "orange": (1.00, 0.55, 0.08), "yellow": (0.99, 0.87, 0.16),
    "green": (0.12, 0.68, 0.24), "blue": (0.14, 0.40, 0.95), "purple": (0.62, 0.22, 0.84),
}
MOTIONS = {
    "still": ["stays still", "does not move", "rests in place"],
    "left": ["moves left", "moves to the left", "slides left", "slides to the left"],
    "right": ["moves right", "moves to the right", "slides right", "slides to the right"],
    "up": ["moves up", "rises", "floats up"],
    "down": ["moves down", "falls", "sinks down"],
    "grow": ["grows", "gets bigger", "expands"],
}
BACKGROUNDS = {
    "white": ["on a white background", "on plain white"],
    "night": ["in the night sky", "at night", "under a night sky"],
    "meadow": ["over a meadow", "in a meadow", "above a grassy field"],
}
OPENINGS = ["", "", "", "a video of ", "an animation of ", "a clip of "]
# Words that people and prompt hooks add and that mean nothing here: the model learns to pass them over.
STYLE = ("cinematic soft light film grain slow smooth bright warm cool vivid simple clean beautiful high quality detailed sharp style "
         "colour color mood lighting shot close wide scene gentle calm large big little cute happy shiny please make show me with and very").split()
ATTRIBUTES = {"shape": list(SHAPES), "colour": list(COLOURS), "motion": list(MOTIONS), "background": list(BACKGROUNDS)}
DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TEXTURE, EXTENT = 128, 1.4  # signed-distance textures cover -EXTENT to EXTENT radii


def outline(shape):
    """A closed polygon of radius about 1."""
    def ring(count, radii=(1.0,), turn=-math.pi / 2):
        return [(radii[i % len(radii)] * math.cos(turn + 2 * math.pi * i / count), radii[i % len(radii)] * math.sin(turn + 2 * math.pi * i / count))
                for i in range(count)]

    if shape == "circle":
        return [(0.92 * x, 0.92 * y) for x, y in ring(72)]
    if shape == "square":
        return [(1.12 * x, 1.12 * y) for x, y in ring(4, turn=math.pi / 4)]
    if shape == "triangle":
        return [(1.12 * x, 1.12 * y + 0.2) for x, y in ring(3)]
    if shape == "star":
        return [(1.1 * x, 1.1 * y) for x, y in ring(10, (1.0, 0.45))]
    steps = [2 * math.pi * i / 72 for i in range(72)]
    return [(math.sin(s) ** 3, -(13 * math.cos(s) - 5 * math.cos(2 * s) - 2 * math.cos(3 * s) - math.cos(4 * s)) / 16 - 0.1) for s in steps]


def signed_distance(points, x, y):
    """Distance to a polygon's edge, negative inside. x, y: any shape."""
    a = torch.tensor(points, dtype=torch.float32)
    b = a.roll(-1, 0)
    near, inside = torch.full_like(x, 1e9), torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(a.tolist(), b.tolist()):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        near = torch.minimum(near, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) / (by - ay) * ex)
    return torch.where(inside, -1.0, 1.0) * near.sqrt()


def pixel_grid(size, device, reach=1.0):
    line = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * reach
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def backdrops(size, device):
    """(3 backgrounds, 3, size, size): each is one fixed picture, of large soft forms."""
    x, y = pixel_grid(size, device)
    colour = lambda *rgb: torch.tensor(rgb, device=device).view(3, 1, 1)
    blend = lambda a, b, amount: a + (b - a) * amount.clamp(0, 1)
    white = blend(colour(0.97, 0.97, 0.97), colour(0.88, 0.89, 0.92), (x * x + y * y) / 2)
    night = blend(colour(0.02, 0.02, 0.09), colour(0.10, 0.10, 0.30), (y + 1) / 2)
    for i in range(9):  # stars well apart, at places that never change
        sx, sy = -0.85 + 0.85 * (i % 3) + 0.2 * math.sin(7.3 * i), -0.8 + 0.75 * (i // 3) + 0.15 * math.cos(5.1 * i)
        night = blend(night, colour(0.95, 0.93, 0.80), torch.exp(-((x - sx) ** 2 + (y - sy) ** 2) / 0.0012))
    sky = blend(colour(0.42, 0.70, 0.96), colour(0.86, 0.94, 1.00), (y + 1) / 1.5)
    hill = 0.52 + 0.10 * torch.sin(2.2 * x + 0.6)
    grass = blend(colour(0.45, 0.72, 0.34), colour(0.22, 0.48, 0.20), (y - 0.4) / 0.6)
    return torch.stack([white, night, blend(sky, grass, (y - hill) * size / 4)])


class Renderer:
    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        x, y = pixel_grid(TEXTURE, "cpu", EXTENT)
        self.textures = torch.stack([signed_distance(outline(s), x, y) for s in SHAPES])[:, None].to(self.device)
        self.palette = torch.tensor(list(COLOURS.values()), device=self.device)
        self.direction = torch.tensor([DIRECTION.get(m, (0, 0)) for m in MOTIONS], dtype=torch.float32, device=self.device)
        self.grow = list(MOTIONS).index("grow")
        self.pictures = {}

    def sample(self, count, generator=None, held_out=False):
        """Random scenes; one (shape, colour, motion) triple in ten is never trained on and drawn only with `held_out`."""
        rand = lambda *shape: torch.rand(*shape, generator=generator)
        pick = lambda names: torch.randint(len(names), (count * 24,), generator=generator)
        shape, colour, motion = pick(SHAPES), pick(COLOURS), pick(MOTIONS)
        keep = (((shape + 2 * colour + 3 * motion) % 10 == 0) == held_out).nonzero()[:count, 0]
        if len(keep) < count:
            raise RuntimeError("too few scenes drawn; ask for more than a handful")
        scene = {"shape": shape[keep], "colour": colour[keep], "motion": motion[keep],
                 "background": torch.randint(len(BACKGROUNDS), (count,), generator=generator), "radius": 0.40 + 0.06 * rand(count), "jitter": 2 * rand(count, 2) - 1}
        return {name: value.to(self.device) for name, value in scene.items()}

    def pose(self, scene, times):
        """Centre (B,F,2) and radius (B,F) at times (F,) or (B,F)."""
        times = times.to(self.device).expand(len(scene["shape"]), -1)
        direction = self.direction[scene["motion"]][:, None]
        centre = 0.08 * scene["jitter"][:, None] + direction * (times[..., None] - 0.5)
        growing = (scene["motion"] == self.grow).float()[:, None]
        radius = scene["radius"][:, None] * (1 + growing * (-0.5 + 0.95 * times))
        return centre, radius

    def render(self, scene, times, size):
        """(B, 3, F, size, size) in [-1, 1]. Objects are lit from the top left and have a darker rim."""
        centre, radius = (v[..., None, None] for v in self.pose(scene, times))
        batch, frames = radius.shape[:2]
        if size not in self.pictures:
            self.pictures[size] = backdrops(size, self.device)
        image = self.pictures[size][scene["background"]][:, :, None]
        x, y = pixel_grid(size, self.device)
        u, v = (x - centre[:, :, 0]) / radius, (y - centre[:, :, 1]) / radius
        where = torch.stack([u, v], -1).view(batch, frames * size, size, 2) / EXTENT
        distance = F.grid_sample(self.textures[scene["shape"]], where, padding_mode="border", align_corners=False)
        distance = distance.view(batch, 1, frames, size, size)
        cover = (0.5 - distance * radius[:, None] * size / 2).clamp(0, 1)
        light = 1.05 - 0.14 * ((u + v) / 2)[:, None].clamp(-1, 1) - 0.35 * torch.exp(-((distance / 0.12) ** 2))
        rgb = (self.palette[scene["colour"]][:, :, None, None, None] * light).clamp(0, 1)
        return (image + (rgb - image) * cover) * 2 - 1


def key_times(frames):
    return torch.linspace(0, 1, frames) if frames > 1 else torch.tensor([0.5])


def made_up_word(rng):
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 6)))


def captions(scene, rng=None):
    """One caption per scene: with `rng` a random paraphrase, sometimes with idle words; without it the plain form."""
    first = (lambda options: options[0]) if rng is None else rng.choice
    chance = (lambda share: False) if rng is None else (lambda share: rng.random() < share)
    rows = zip(*(scene[name].tolist() for name in ATTRIBUTES))
    texts = []
    for shape, colour, motion, background in rows:
        noun = first(list(SHAPES.values())[shape])
        colour = list(COLOURS)[colour]
        filler = rng.choice(STYLE) + " " if chance(0.08) else ""
        thing = f"{'an' if (filler + colour)[0] in 'aeiou' else 'a'} {filler}{colour} {noun} {first(list(MOTIONS.values())[motion])}"
        place = first(list(BACKGROUNDS.values())[background])
        text = f"{place}, {thing}" if chance(0.15) else first(OPENINGS) + thing + (", " if chance(0.3) else " ") + place
        if chance(0.25):
            text += ", " + " ".join(rng.choice(STYLE) if rng.random() < 0.8 else made_up_word(rng) for _ in range(rng.randint(1, 4)))
        texts.append(text[0].upper() + text[1:] + "." if chance(0.3) else text)
    return texts


def contact_sheet(clips, path, width=None):
    """Clips (N,3,F,H,W) in [-1,1] as one PNG: a row per clip, a column per frame; `width`: pixels of one frame."""
    from PIL import Image
    n, _, f, h, w = clips.shape
    pixels = ((clips.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 3, 2, 4, 1).reshape(n * h, f * w, 3)
    image = Image.fromarray(pixels.cpu().numpy())
    if width:
        image = image.resize((f * width, n * h * width // w), Image.LANCZOS)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    demo = Renderer()
    scenes = demo.sample(12, torch.Generator().manual_seed(0))
    print("\n".join(captions(scenes, random.Random(0))))
    contact_sheet(demo.render(scenes, key_times(8), 128), "world.png", 64)
