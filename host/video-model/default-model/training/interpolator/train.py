"""Trains the interpolator on synthetic triplets with known flow, inside a wall-clock budget.

    python train.py --photos FOLDER --run FOLDER --minutes 90 [--clip bikes.mp4] [--device cuda]

The network grows: first the coarsest block alone on small pictures with small motions, then block after block on larger ones. In the
whole network a coarse block sees 1/256 of the pixels; alone on small pictures it learns from all of them.
The learning rate and the stages follow the elapsed time, so the run ends annealed whatever the speed is. Stopped, it resumes from
RUN/state.pt. Every few minutes it writes RUN/weights (the moving average, in the shipped format) and logs PSNR on the clip and on
scenes of flat shapes; neither is ever trained on.
"""
import argparse
import time
from collections import namedtuple
from pathlib import Path

import torch
import torch.nn.functional as F

from data import Scenes, Textures
from evaluate import clip_triplets, psnr, score
from model import IFNet, enlarge, interpolate, save
from muon import Muon

WIDTHS = (48, 48, 48, 48, 48)  # equal, so that a new block can start as a copy of the one before
# blocks in use, share of the time, share of the full displacements, sizes as (height, width, batch, share of flat shapes)
Stage = namedtuple("Stage", "blocks share reach sizes")
STAGES = (
    Stage(1, 0.24, 1 / 8, ((64, 64, 12, 0.2),)),
    Stage(2, 0.08, 1 / 5, ((96, 96, 6, 0.2),)),
    Stage(3, 0.10, 1 / 3, ((128, 96, 6, 0.25),)),
    Stage(4, 0.20, 0.6, ((96, 128, 6, 0.15), (128, 128, 4, 0.5))),
    Stage(5, 0.38, 1, ((192, 256, 3, 0.12), (128, 128, 8, 0.65))),
)
PICTURE_FROM = 4  # blocks: before, the picture is only a by-product of the flow
REUSE = 5  # times a drawn triplet is seen, each time mirrored, reversed and recoloured at random
POOL = 400


class Pool:
    """Recently drawn triplets of one size, kept in bytes and half floats."""

    def __init__(self, scenes, height, width, batch, shapes):
        self.scenes, self.args, self.batch = scenes, (height, width, shapes), batch
        self.items, self.seen = [], 0

    def draw(self):
        first, last, middle, t, flow, seen = self.scenes.batch(4, *self.args)
        frames = (torch.cat([first, last, middle], 1) * 255).round().to(torch.uint8)
        for i in range(4):
            self.items.append((frames[i], t[i], flow[i].half(), seen[i].to(torch.uint8)))
        self.items = self.items[-POOL:]
        self.seen -= 4 * REUSE

    def sample(self, rng):
        while self.seen + self.batch > 0 or len(self.items) < 32:
            self.draw()
        self.seen += self.batch
        chosen = [self.items[int(i)] for i in torch.randint(len(self.items), (self.batch,), generator=rng)]
        frames, t, flow, seen = (torch.stack(x) for x in zip(*chosen))
        return augment(frames.float() / 255, t, flow.float(), seen.float(), rng)


def augment(frames, t, flow, seen, rng):
    """One random mirroring, transposition (square pictures) and reversal of time a batch, one order of the colours a batch."""
    coin = lambda: torch.rand((), generator=rng).item() < 0.5  # noqa: E731
    for dim, sign in ((3, (-1, 1)), (2, (1, -1))):
        if coin():
            frames, flow, seen = frames.flip(dim), flow.flip(dim) * flow.new_tensor(sign * 2).view(1, 4, 1, 1), seen.flip(dim)
    if frames.shape[2] == frames.shape[3] and coin():
        frames, flow, seen = frames.transpose(2, 3), flow.transpose(2, 3)[:, [1, 0, 3, 2]], seen.transpose(2, 3)
    first, last, middle = frames.split(3, 1)
    if coin():
        first, last, t, flow, seen = last, first, 1 - t, flow[:, [2, 3, 0, 1]], seen[:, [1, 0]]
    colours = torch.randperm(3, generator=rng)
    first, last, middle = (x[:, colours].contiguous() for x in (first, last, middle))
    valid = torch.ones_like(first[:, :1])
    if torch.rand((), generator=rng).item() < 0.2:  # the zeros that pad a picture to a multiple of 64
        rows, columns = (int(torch.randint(0, 1 + size // 4, (), generator=rng)) for size in valid.shape[2:])
        valid[:, :, valid.shape[2] - rows :] = 0
        valid[:, :, :, valid.shape[3] - columns :] = 0
    return first * valid, last * valid, middle * valid, t, flow.contiguous(), seen.contiguous(), valid


def picture_loss(frame, truth):
    """L1 plus L1 of a Laplacian pyramid: the pyramid keeps edges sharp, where L1 alone accepts a blur."""
    error, loss = frame - truth, (frame - truth).abs().mean()
    for level in range(4):
        coarse = F.avg_pool2d(error, 2)
        loss = loss + 2**level * 0.25 * (error - enlarge(coarse, 2)).abs().mean()
        error = coarse
    return loss + 2 * error.abs().mean()


def losses(net, batch, blocks):
    first, last, middle, t, flow, seen, valid = batch
    frame, flows, masks = net(first, last, t, blocks)
    thin = lambda x: x[:, :, 1::2, 1::2]  # noqa: E731 - a quarter of the pixels is enough to supervise the flow
    truth = thin(flow)
    weight = thin(valid) * (0.3 + 0.7 * thin(seen))
    flow_loss = mask_loss = 0
    for i, (guess, mask) in enumerate(zip(flows, masks)):
        off = (thin(guess) - truth).unflatten(1, (2, 2)).square().sum(2)
        flow_loss = flow_loss + 0.6 ** (blocks - 1 - i) * ((off + 0.01).sqrt() * weight).mean()
        scale = 2 ** (blocks - 1 - i)
        sides = seen[:, :, scale // 2 :: scale, scale // 2 :: scale]
        one_side = (sides[:, :1] != sides[:, 1:]).float()
        mask_loss = mask_loss + (F.binary_cross_entropy_with_logits(mask, sides[:, :1], reduction="none") * one_side).mean()
    return picture_loss(frame * valid, middle), flow_loss, mask_loss, flows


def shape_scenes(textures):
    """A fixed set of flat-shape scenes, 128x128, middle frames: what the default video model draws."""
    return Scenes(textures, seed=999).batch(24, 128, 128, 1.0, times=[0.5] * 24)[:3]


def start(net):
    """Kernels that see differences: of the two pictures (half of the outputs), and in space. With the usual random start the
    brightness, which says nothing of motion, drowns them. The last layers start small: no flow."""
    head = net.encode.cnn0.weight.data
    head.sub_(head.mean((2, 3), keepdim=True)).mul_(2)
    for i in range(len(net.widths)):
        block = getattr(net, f"block{i}")
        w = block.conv0[0][0].weight.data  # inputs: 3 + 3 of the pictures, 4 + 4 features, the time, ...
        sign = torch.ones(len(w), 1, 1, 1)
        sign[: len(w) // 2] = -1
        w[:, :14].sub_(w[:, :14].mean((2, 3), keepdim=True)).mul_(4)
        w[:, 3:6] = w[:, 0:3] * sign
        w[:, 10:14] = w[:, 6:10] * sign
        block.lastconv[0].weight.data.mul_(0.1)


@torch.no_grad()
def grow(net, block):
    """Starts a block as a copy of the one before: its task is the same, on pictures that are already warped. The inputs that only
    later blocks have (mask, carried features, flow) are copied between those blocks, and start at zero in the second."""
    old, new = getattr(net, f"block{block - 1}"), getattr(net, f"block{block}")
    for a, b in zip(old.parameters(), new.parameters()):
        if a.shape == b.shape:
            b.copy_(a)
        else:
            b.zero_()
            b[:, : a.shape[1]] = a


def optimizers(net, rate):
    kernels = [p for n, p in net.named_parameters() if n.startswith("block") and p.dim() == 4 and "lastconv" not in n and "beta" not in n]
    chosen = {id(p) for p in kernels}
    others = [p for p in net.parameters() if id(p) not in chosen]
    groups = [Muon(kernels, lr=rate), torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)]
    groups[0].param_groups[0]["share"], groups[1].param_groups[0]["share"] = 1, 0.5
    return groups


def stage_at(done):
    for stage in STAGES:
        done -= stage.share
        if done < 0:
            return stage
    return STAGES[-1]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", required=True)
    p.add_argument("--run", required=True)
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--clip", help="a clip whose held-out middle frames are scored every few minutes")
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--batch-factor", type=int, default=1, help="times larger batches than on a CPU")
    p.add_argument("--report-minutes", type=float, default=3)
    return p.parse_args()


class Run:
    """The network, its moving average, the optimizers and the clock; kept in RUN/state.pt."""

    def __init__(self, args):
        self.args, self.folder = args, Path(args.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "log.txt").open("a", buffering=1)
        torch.manual_seed(0)
        self.net, self.average = IFNet(WIDTHS), IFNet(WIDTHS).eval()
        start(self.net)
        self.average.load_state_dict(self.net.state_dict())
        self.net.to(args.device), self.average.to(args.device)
        self.optimizers, self.step, self.blocks, spent = optimizers(self.net, args.rate), 0, 1, 0.0
        if (self.folder / "state.pt").exists():
            state = torch.load(self.folder / "state.pt", map_location=args.device)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(kept)
            self.step, self.blocks, spent = state["step"], state["blocks"], state["spent"]
            self.say(f"resumed at step {self.step}, {spent / 60:.1f} min")
        self.began = time.time() - spent

    def say(self, *words):
        print(*words, flush=True)
        print(*words, file=self.log)

    def done(self):
        return (time.time() - self.began) / 60 / self.args.minutes

    def save(self):
        state = {"net": self.net.state_dict(), "average": self.average.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                 "step": self.step, "blocks": self.blocks, "spent": time.time() - self.began}
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")
        save(self.average, self.folder / "weights")

    def grow(self, blocks):
        for block in range(self.blocks, blocks):
            grow(self.net, block)
            grow(self.average, block)
        self.blocks = blocks

    def update(self, batch, stage, done):
        """One step; returns what the log shows: picture, flow and mask loss, flow error in pixels and as a share of the motion."""
        rate = self.args.rate * min(1, (self.step + 1) / 50) * (1 - done) + 1e-6
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.args.device, torch.bfloat16):
            picture, flow, mask, flows = losses(self.net, batch, stage.blocks)
        with_picture = stage.blocks >= PICTURE_FROM
        loss = (picture + 0.05 * mask) * with_picture + 0.05 * (0.1**done if with_picture else 1) * flow
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(0.997, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for a, b in zip(self.average.parameters(), self.net.parameters()):
                a.lerp_(b, 1 - decay)
            counted = batch[5] * batch[6]
            error, motion = (((x.unflatten(1, (2, 2)).norm(dim=2) * counted).sum() / counted.sum()).item() for x in (flows[-1] - batch[4], batch[4]))
        return torch.tensor([picture.item(), flow.item(), mask.item(), error, motion])


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    run = Run(args)
    textures = Textures(args.photos)
    scenes = Scenes(textures, seed=int(time.time()), device=args.device)
    shapes = shape_scenes(textures)
    triplets = clip_triplets(args.clip, 12) if args.clip else []
    rng = torch.Generator().manual_seed(run.step)
    stage, reported, totals, count = None, time.time(), torch.zeros(5), 0
    while (done := run.done()) < 1:
        if stage != (stage := stage_at(done)):
            scenes.reach = stage.reach
            if stage.blocks > run.blocks:
                run.grow(stage.blocks)
            pools = [Pool(scenes, h, w, b * args.batch_factor, flat) for h, w, b, flat in stage.sizes]
            totals, count = torch.zeros(5), 0
        pool = pools[int(torch.randint(len(pools), (), generator=rng))]
        totals += run.update([x.to(args.device) for x in pool.sample(rng)], stage, done)
        count += 1
        if time.time() - reported > args.report_minutes * 60 or run.step == 50:
            picture, flow, mask, error, motion = (totals / count).tolist()
            run.say(f"step {run.step} {run.done() * args.minutes:.1f} min, {stage.blocks} blocks: picture {picture:.4f} flow {flow:.3f} mask {mask:.4f} "
                    f"flow error {error:.2f} of {motion:.2f} px; processor {time.process_time():.0f} s")
            run.save()
            if stage.blocks == len(WIDTHS):
                report(run.average, triplets, shapes, run.say)
            reported, totals, count = time.time(), torch.zeros(5), 0
    run.save()
    report(run.average, triplets, shapes, run.say)
    run.say(f"finished: step {run.step}")


def report(net, triplets, shapes, say):
    net.eval()
    first, last, middle = shapes
    device = next(net.parameters()).device
    drawn = interpolate(net, first.to(device), last.to(device), [0.5] * len(first)).cpu()
    say(f"    shapes: ours {psnr_each(drawn, middle):.2f} dB, blend {psnr_each((first + last) / 2, middle):.2f} dB")
    if triplets:
        ours, blend = score(net, triplets)
        say(f"    clip: ours {ours:.2f} dB, blend {blend:.2f} dB")


def psnr_each(a, b):
    return sum(psnr(x, y) for x, y in zip(a, b)) / len(a)


if __name__ == "__main__":
    main()
