"""The same work in torch, on the same device: what our figures stand beside.

    torch_peers.py kernels OURS.json OUT.json [--device cuda|cpu]     every operation of `zoetrope bench kernels --json` that torch has
    torch_peers.py forward FOLDER FRAMES OUT.json [--device ...]      the transformer of wan_torch.py, compiled, in bf16; also writes
                                                                      FOLDER/velocity-FRAMES.safetensors, from f32 products

Times are medians in microseconds: events, the second-level cache filled with something else before each run (host clock on a CPU).
Attention is timed under each of torch's implementations; the fastest counts.
"""
import argparse
import contextlib
import json
import re
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import wan_torch

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
L2_BYTES = 256 << 20


def median_us(run, device, runs):
    run()
    run()
    times = []
    if device.type == "cpu":
        for _ in range(runs):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e6)
    else:
        other = torch.empty(L2_BYTES, dtype=torch.int8, device=device)
        for _ in range(runs):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            other.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def attention_backends(device):
    """Name and context of each implementation that torch can be told to take."""
    if device.type == "cpu":
        return {"default": contextlib.nullcontext}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    wanted = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    return {name: lambda backend=backend: sdpa_kernel(backend) for name, backend in wanted.items()}


def fastest(run, device, runs):
    """The best attention backend: (microseconds, name, what failed)."""
    best, failed = None, []
    for name, context in attention_backends(device).items():
        try:
            with context():
                us = median_us(run, device, runs)
        except RuntimeError as error:
            failed.append(f"{name}: {str(error).splitlines()[0][:120]}")
            continue
        best = min(best or (us, name), (us, name))
    if best is None:
        raise RuntimeError("; ".join(failed))
    return best


def noise(shape, dtype, device):
    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)


def attention(device, runs, tq, tk, heads, width, dtype):
    q, k, v = (noise((1, heads, t, width), DTYPES[dtype], device) for t in (int(tq), int(tk), int(tk)))
    us, name = fastest(lambda: F.scaled_dot_product_attention(q, k, v), device, runs)
    return us, f"scaled_dot_product_attention, {name}"


def linear(device, runs, m, n, k, dtype):
    x, w = noise((m, k), DTYPES[dtype], device), noise((n, k), DTYPES[dtype], device)
    return median_us(lambda: F.linear(x, w), device, runs), "linear"


def causal_conv3d(device, runs, cin, cout, f, h, w, dtype):
    # Two frames of history and a border of one pixel are part of the work.
    x = noise((1, cin, f + 2, h, w), DTYPES[dtype], device).to(memory_format=torch.channels_last_3d)
    conv = torch.nn.Conv3d(cin, cout, 3, padding=(0, 1, 1), device=device, dtype=DTYPES[dtype]).to(memory_format=torch.channels_last_3d)
    return median_us(lambda: conv(x), device, runs), "conv3d, channels last"


def conv2d(device, runs, cin, cout, h, w, dtype):
    x = noise((1, cin, h, w), DTYPES[dtype], device).to(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(cin, cout, 3, padding=1, device=device, dtype=DTYPES[dtype]).to(memory_format=torch.channels_last)
    return median_us(lambda: conv(x), device, runs), "conv2d, channels last"


# Named as `zoetrope bench kernels` names them.
PEERS = [
    (r"attention (\d+)x(\d+) (\d+)x(\d+) (bf16|f32)", attention),
    (r"linear (\d+)x(\d+)x(\d+) (bf16|f32)", linear),
    (r"causal_conv3d (\d+)->(\d+) (\d+)x(\d+)x(\d+) (bf16|f32)", causal_conv3d),
    (r"conv2d (\d+)->(\d+) (\d+)x(\d+) (bf16|f32)", conv2d),
]


def kernels(ours, device, runs):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    found = {}
    for name in (timing["name"] for timing in json.loads(Path(ours).read_text())["timings"]):
        for pattern, peer in PEERS:
            if match := re.fullmatch(pattern, name):
                *sizes, dtype = match.groups()
                try:
                    us, what = peer(device, runs, *map(int, sizes), dtype)
                except RuntimeError as error:  # out of memory, no implementation: said in the table
                    found[name] = {"failed": str(error).splitlines()[0][:200]}
                else:
                    found[name] = {"us": us, "what": f"torch {torch.__version__} {what}"}
                print(name, found[name], flush=True)
    return found


def forward(folder, frames, device, runs):
    from safetensors.torch import load_file, save_file

    inputs = load_file(folder / f"inputs-{frames}.safetensors", device=str(device))
    exact = wan_torch.load(folder, torch.float32, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    latent, timestep, text = inputs["latent"][None], inputs["timestep"], inputs["text"][None]
    with torch.inference_mode():
        velocity = exact(latent, timestep, text)
        save_file({"output": velocity[0].float().cpu().contiguous()}, folder / f"velocity-{frames}.safetensors")
        del exact
        model = wan_torch.load(folder, torch.bfloat16, device)
        rounded = latent.bfloat16(), timestep, text.bfloat16()
        error = wan_torch.relative_rmse(model(*rounded), velocity)
        eager_us, backend = fastest(lambda: model(*rounded), device, runs)
        # All blocks share one piece of code, which is compiled once.
        for block in model.blocks:
            block.compile()
        with attention_backends(device)[backend]():
            compiled_us = median_us(lambda: model(*rounded), device, runs)
    return {"us": min(compiled_us, eager_us), "compiled_us": compiled_us, "eager_us": eager_us, "relative_rmse": error,
            "what": f"torch {torch.__version__} bf16, blocks compiled, attention {backend}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=10)
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("kernels")
    part.add_argument("ours")
    part.add_argument("out", type=Path)
    part = commands.add_parser("forward")
    part.add_argument("folder", type=Path)
    part.add_argument("frames", type=int)
    part.add_argument("out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    with torch.inference_mode():
        found = kernels(args.ours, device, args.runs) if args.command == "kernels" else forward(args.folder, args.frames, device, args.runs)
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
