"""Synthetic frame triplets whose true motion is known: layers with textures move over one another.

A scene is a background and up to three foregrounds. Each layer has a texture in its own coordinates and a motion: a similarity
transform that changes linearly with time (position, angle, log size), a smooth bending, and the camera's motion on top. A frame at
any time in [0,1] is the layers drawn through their inverse motions, so the in-between frame, the flow and what is hidden are exact.
"""
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from photos import drawn

LAYERS = 4  # a background and three foregrounds
BEND_CELLS = 6  # the bending is a smooth field with this many random values a side
FIXED_POINT_STEPS = 4  # to invert the bending; its slope is below 0.3, so the error is below 0.3^4 of a few pixels


class Textures:
    """Crops of photographs and of drawn textures, at several reductions."""

    def __init__(self, folder, drawn_count=60):
        photos = [Image.open(p).convert("RGB") for p in sorted(Path(folder).glob("*.png"))]
        if not photos:
            raise SystemExit(f"no photographs in {folder}: run photos.py first")
        self.photos = [self.levels(p) for p in photos]
        self.drawn = [self.levels(p) for p in drawn(drawn_count)]

    @staticmethod
    def levels(picture):
        sizes = [(round(picture.width / f), round(picture.height / f)) for f in (1, 1.5, 2.2, 3.2)]
        return [np.asarray(picture.resize(s, Image.LANCZOS)) for s in sizes if min(s) >= 280] or [np.asarray(picture)]

    def crop(self, rng, side, photo_share=0.7):
        bank = self.photos if rng.uniform() < photo_share else self.drawn
        levels = bank[rng.integers(len(bank))]
        picture = levels[rng.integers(len(levels))]
        h, w = picture.shape[:2]
        y, x = rng.integers(max(1, h - side + 1)), rng.integers(max(1, w - side + 1))
        piece = np.rot90(picture[y : y + side, x : x + side], rng.integers(4))
        piece = torch.from_numpy(np.array(piece[:, ::-1] if rng.uniform() < 0.5 else piece)).permute(2, 0, 1).float() / 255
        short = (side - piece.shape[1], side - piece.shape[2])
        if max(short) > 0:
            piece = F.pad(piece[None], (0, short[1], 0, short[0]), mode="reflect")[0]
        gain, gamma = rng.uniform(0.6, 1.15, 3).astype(np.float32), float(rng.uniform(0.7, 1.5))
        return (piece**gamma * torch.from_numpy(gain)[:, None, None])[torch.from_numpy(rng.permutation(3))].clamp(0, 1)


def grid(side):
    """Coordinates of a layer's texels, (side,side) x and y, in pixels from its centre."""
    line = torch.arange(side) + 0.5 - side / 2
    return torch.meshgrid(line, line, indexing="xy")


def outline(rng, angle):
    """Radius as a function of the angle of a random shape (circle, polygon, star, heart, flower, blob); about 1 at most."""
    kind, n = rng.integers(7), int(rng.integers(3, 7))
    fold = torch.remainder(angle, 2 * math.pi / n) - math.pi / n
    if kind == 0:
        return torch.ones_like(angle)
    if kind <= 2:
        return math.cos(math.pi / n) / torch.cos(fold)
    if kind == 3:  # star of n points: straight edges from radius 1 down to `inner`
        n, inner = int(rng.integers(4, 8)), rng.uniform(0.4, 0.65)
        fold = torch.remainder(angle, 2 * math.pi / n)
        fold = torch.minimum(fold, 2 * math.pi / n - fold)
        half = math.pi / n
        return inner * math.sin(half) / (inner * torch.sin(half - fold) + torch.sin(fold))
    if kind == 4:  # heart, point down
        s, c = torch.sin(angle), torch.cos(angle)
        return (2 - 2 * -s + -s * c.abs().sqrt() / (-s + 1.4)).clamp_min(0.05) / 4 + 0.12
    if kind == 5:
        return 0.7 + 0.3 * torch.cos(n * angle)
    wave = sum(float(rng.normal(0, 0.5 / k)) * torch.cos(k * angle + float(rng.uniform(0, 6.3))) for k in range(1, 7))
    return torch.sigmoid(wave) + 0.2


def cover(rng, side, radius, soft):
    """Opacity (side,side) of a foreground: a random shape of about `radius`, sometimes a ring or a row of bars."""
    x, y = grid(side)
    stretch = math.exp(rng.normal(0, 0.25))
    x, y = x * stretch, y / stretch
    distance = (x**2 + y**2).sqrt()
    edge = outline(rng, torch.atan2(y, x) + float(rng.uniform(0, 6.3))) * radius
    alpha = ((edge - distance) / soft + 0.5).clamp(0, 1)
    special = rng.uniform()
    if special < 0.12:
        alpha = alpha * ((distance - edge * float(rng.uniform(0.3, 0.85))) / soft + 0.5).clamp(0, 1)
    elif special < 0.2:  # bars: spokes, railings
        period = float(rng.uniform(8, 40))
        bars = (torch.remainder(x, period) - period / 2).abs() - period / 2 * float(rng.uniform(0.3, 0.8))
        alpha = alpha * (bars / soft + 0.5).clamp(0, 1)
    return alpha


def plain_background(rng, side):
    """What a drawn clip has behind its shapes: one colour, a gradient, a night sky, stripes, a checkerboard, hills."""
    x, y = grid(side)
    a, b = (torch.from_numpy(rng.uniform(0, 1, 3).astype(np.float32)).view(3, 1, 1) for _ in range(2))
    kind = rng.integers(8)
    if kind == 0:
        return torch.full((3, side, side), float(rng.uniform(0.93, 1)))
    if kind == 1:
        return torch.full((3, side, side), float(rng.uniform(0, 0.08)))
    if kind == 2:
        return a.expand(3, side, side).clone()
    angle, period = rng.uniform(0, 6.3), rng.uniform(14, 60)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    ramp = (along / (side * float(rng.uniform(0.3, 0.8))) + 0.5).clamp(0, 1)
    if kind == 3:
        return a + (b - a) * ramp
    if kind == 4:
        sky = torch.tensor([0.03, 0.04, 0.14]).view(3, 1, 1) + 0.15 * ramp * b
        points = torch.from_numpy((rng.uniform(0, 1, (1, 1, side, side)) > 0.997).astype(np.float32))
        stars = F.avg_pool2d(points, 3, 1, 1)[0] * float(rng.uniform(2, 9))
        return (sky + stars).clamp(0, 1)
    stripe = lambda v: ((torch.remainder(v, period) - period / 2).abs() - period / 4 + 0.5).clamp(0, 1)  # noqa: E731
    if kind == 5:
        return a + (b - a) * stripe(along)
    if kind == 6:
        p, q = stripe(along), stripe(across)
        return a + (b - a) * (p + q - 2 * p * q)
    hill = (y - side * 0.08 * torch.sin(x * float(rng.uniform(0.01, 0.05)) + float(rng.uniform(0, 6)))).clamp(-0.5, 0.5) + 0.5
    return (a + (1 - a) * 0.5 * ramp) * (1 - hill) + b * (0.7 + 0.3 * ramp) * hill


def flat_texture(rng, side, radius):
    """One colour with a light from one side and a darker rim, or without."""
    x, y = grid(side)
    colour = torch.from_numpy((rng.uniform(0, 1, 3) ** rng.uniform(0.4, 2)).astype(np.float32)).view(3, 1, 1)
    if rng.uniform() < 0.3:
        return colour.expand(3, side, side).clone()
    light = 1 + float(rng.uniform(0, 0.3)) * ((x + y) / -radius).clamp(-1, 1)
    rim = 1 - float(rng.uniform(0, 0.3)) * torch.exp(-(((x**2 + y**2).sqrt() / radius - 1) / 0.15) ** 2)
    return (colour * light * rim).clamp(0, 1)


class Scenes:
    """`batch(n, height, width, shapes)` draws n random triplets; `shapes` is the share of flat shapes on plain backgrounds."""

    def __init__(self, textures, seed=0, device="cpu"):
        self.textures, self.rng, self.device = textures, np.random.default_rng(seed), device
        self.reach = 1.0  # share of the full displacements; a curriculum starts small

    def layers(self, n, side, size, shapes):
        """Textures (n*LAYERS,4,side,side), motions as a dict of (n*LAYERS,...) tensors, cameras, and opacity changes."""
        rng = self.rng
        texture = torch.zeros(n, LAYERS, 4, side, side)
        motion = {k: np.zeros((n, LAYERS) + s, np.float32) for k, s in
                  (("centre", (2,)), ("move", (2,)), ("angle", ()), ("turn", ()), ("grow", ()), ("bend", ()), ("fade", ()))}
        camera = {k: np.zeros((n,) + s, np.float32) for k, s in (("move", (2,)), ("turn", ()), ("grow", ()))}
        for i in range(n):
            flat = rng.uniform() < shapes
            pan = rng.uniform() < (0.35 if flat else 0.85)
            camera["move"][i] = direction(rng) * pan * (12 if flat else 44) * rng.uniform() ** 2
            camera["turn"][i] = pan * rng.normal(0, 0.03)
            camera["grow"][i] = pan * rng.normal(0, 0.04)
            texture[i, 0, :3] = plain_background(rng, side) if flat and rng.uniform() < 0.85 else self.textures.crop(rng, side)
            texture[i, 0, 3] = 1
            motion["bend"][i, 0] = 0 if flat else rng.uniform(0, 6) * (rng.uniform() < 0.5)
            for k in range(1, LAYERS):
                if rng.uniform() > (0.9, 0.55, 0.3)[k - 1]:
                    continue
                radius = size * (rng.uniform(0.08, 0.3) if flat else rng.uniform(0.06, 0.45))
                texture[i, k, 3] = cover(rng, side, radius, float(rng.uniform(1, 2.5)))
                plain = flat or rng.uniform() < 0.1
                texture[i, k, :3] = flat_texture(rng, side, radius) if plain else self.textures.crop(rng, side)
                motion["centre"][i, k] = rng.uniform(-0.5, 0.5, 2)
                motion["angle"][i, k] = rng.uniform(0, 6.3)
                motion["move"][i, k] = direction(rng) * (28 if flat else 56) * rng.uniform() ** 1.5
                motion["turn"][i, k] = rng.normal(0, 0.25) * (rng.uniform() < 0.5)
                motion["grow"][i, k] = rng.normal(0, 0.14) * (rng.uniform() < 0.6)
                motion["bend"][i, k] = 0 if flat else rng.uniform(0, 8) * (rng.uniform() < 0.5)
                motion["fade"][i, k] = rng.uniform(-1, 1) * (rng.uniform() < 0.08)
        motion["move"] *= self.reach
        motion["bend"] *= self.reach
        camera["move"] *= self.reach
        to = lambda d: {k: torch.from_numpy(v).to(self.device) for k, v in d.items()}  # noqa: E731
        return texture.to(self.device), to(motion), to(camera)

    def batch(self, n, height, width, shapes, times=None):
        """first, last, middle (n,3,H,W) in [0,1]; t (n,1,1,1), random without `times`; flow from the middle to first and last
        (n,4,H,W) in pixels; seen (n,2,H,W): 1 where the middle's pixel can be seen in first, in last."""
        rng = self.rng
        side = max(height, width) * 5 // 4
        texture, motion, camera = self.layers(n, side, min(height, width), shapes)
        if times is None:
            times = rng.uniform(0.1, 0.9, n) if rng.uniform() < 0.5 else np.full(n, 0.5)
        t = torch.as_tensor(times, dtype=torch.float32, device=self.device)
        bend = torch.from_numpy(rng.normal(0, 1, (n * LAYERS, 2, BEND_CELLS, BEND_CELLS)).astype(np.float32))
        scene = Scene(texture, motion, camera, bend, height, width)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        (first, top0), (middle, top), (last, top1) = scene.draw(zero), scene.draw(t), scene.draw(one)
        flow0, seen0 = scene.flow(t, zero, top, top0)
        flow1, seen1 = scene.flow(t, one, top, top1)
        first, last, middle = self.camera_noise(first, last, middle, t)
        return first, last, middle, t.view(-1, 1, 1, 1), torch.cat([flow0, flow1], 1), torch.cat([seen0, seen1], 1)

    def camera_noise(self, first, last, middle, t):
        """A third of the scenes get a drift of brightness and grain in the two given frames; the middle stays clean."""
        rng, n = self.rng, first.shape[0]
        on = torch.from_numpy((rng.uniform(0, 1, n) < 0.33).astype(np.float32)).view(-1, 1, 1, 1).to(first)
        drift = torch.from_numpy(rng.normal(0, 0.02, n).astype(np.float32)).view(-1, 1, 1, 1).to(first) * on
        grain = torch.from_numpy(rng.uniform(0, 0.012, n).astype(np.float32)).view(-1, 1, 1, 1).to(first) * on
        first = first * (1 + drift * (0 - t.view(-1, 1, 1, 1))) + grain * torch.randn_like(first)
        last = last * (1 + drift * (1 - t.view(-1, 1, 1, 1))) + grain * torch.randn_like(last)
        return first.clamp(0, 1), last.clamp(0, 1), middle


def direction(rng):
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([math.cos(angle), math.sin(angle)])


class Scene:
    """n scenes of LAYERS layers, ready to be drawn at any time; the layers lie in the batch dimension (n*LAYERS)."""

    def __init__(self, texture, motion, camera, bend, height, width):
        self.n, self.height, self.width, self.side = texture.shape[0], height, width, texture.shape[-1]
        self.texture, self.motion, self.camera = texture.flatten(0, 1), motion, camera
        amplitude = motion["bend"].reshape(-1, 1, 1, 1)
        self.bend = F.interpolate(bend.to(texture), size=(48, 48), mode="bicubic", align_corners=True) * amplitude
        device = texture.device
        x, y = torch.meshgrid(torch.arange(width, device=device) + 0.5 - width / 2, torch.arange(height, device=device) + 0.5 - height / 2, indexing="xy")
        self.pixels = torch.stack([x, y])[None]  # from the picture's centre, in pixels
        self.bends = bool(amplitude.any())

    def transform(self, time):
        """Layer to picture at time (n,): matrix (n*L,2,2) and offset (n*L,2,1)."""
        m, c, s = self.motion, self.camera, (time - 0.5)[:, None]
        own, own_at = similarity(m["angle"] + m["turn"] * s, torch.exp(m["grow"] * s)), self.position(s)
        eye = similarity(c["turn"][:, None] * s, torch.exp(c["grow"][:, None] * s))
        at = (eye @ own_at[..., None])[..., 0] + c["move"][:, None] * s[..., None]
        return (eye @ own).flatten(0, 1), at.reshape(-1, 2, 1)

    def position(self, s):
        extent = torch.tensor([self.width, self.height], device=s.device)
        return self.motion["centre"] * extent + self.motion["move"] * s[..., None]

    def bending(self, u):
        """The bending (n*L,2,H,W) at layer coordinates u, in pixels; it acts in proportion to time - 0.5."""
        return F.grid_sample(self.bend, (u / (self.side / 2)).permute(0, 2, 3, 1), align_corners=False, padding_mode="border")

    def to_layer(self, time):
        """Layer coordinates (n*L,2,H,W) of each picture pixel."""
        matrix, offset = self.transform(time)
        u = (torch.linalg.inv(matrix) @ (self.pixels.flatten(2) - offset)).view(-1, 2, self.height, self.width)
        return u + self.bending(u) * self.per_layer(time - 0.5) if self.bends else u

    def to_picture(self, u, time):
        """The inverse of to_layer, at other pixels: picture coordinates (n*L,2,H,W) of layer coordinates u."""
        v = u
        if self.bends:
            for _ in range(FIXED_POINT_STEPS):
                v = u - self.bending(v) * self.per_layer(time - 0.5)
        matrix, offset = self.transform(time)
        return (matrix @ v.flatten(2) + offset).view_as(u)

    def per_layer(self, value):
        return value[:, None].expand(-1, LAYERS).reshape(-1, 1, 1, 1)

    def draw(self, time):
        """The picture (n,3,H,W) and the index of the topmost layer (n,1,H,W) at time (n,)."""
        where = (self.to_layer(time) / (self.side / 2)).permute(0, 2, 3, 1)
        layers = F.grid_sample(self.texture, where, align_corners=False, padding_mode="reflection").view(self.n, LAYERS, 4, self.height, self.width)
        picture = layers[:, 0, :3]
        top = torch.zeros_like(picture[:, :1])
        for k in range(1, LAYERS):
            opacity = 1 - (self.motion["fade"][:, k].abs() * torch.where(self.motion["fade"][:, k] > 0, time, 1 - time))
            alpha = layers[:, k, 3:] * opacity[:, None, None, None]
            picture = picture + (layers[:, k, :3] - picture) * alpha
            top = torch.where(alpha > 0.5, float(k), top)
        return picture, top

    def flow(self, time, other, top, other_top):
        """Flow (n,2,H,W) of each pixel at `time` to its place at `other`, and whether it can be seen there (n,1,H,W)."""
        there = self.to_picture(self.to_layer(time), other) - self.pixels
        index = top[:, None].long().expand(-1, 1, 2, -1, -1)
        flow = there.view(self.n, LAYERS, 2, self.height, self.width).gather(1, index)[:, 0]
        half = torch.tensor([self.width / 2, self.height / 2], device=flow.device).view(1, 2, 1, 1)
        where = ((self.pixels + flow) / half).permute(0, 2, 3, 1)
        seen = F.grid_sample(other_top, where, mode="nearest", align_corners=False, padding_mode="border") == top
        inside = (where.abs() <= 1).all(-1)[:, None]
        return flow, (seen & inside).float()


def similarity(angle, scale):
    c, s = torch.cos(angle) * scale, torch.sin(angle) * scale
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
