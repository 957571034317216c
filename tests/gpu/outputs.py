"""Whole runs of the program on a device beside the CPU: `outputs.py ZOETROPE DEVICE FOLDER [--tiny]` writes FOLDER/outputs.json.

The built-in model makes one video from one seed on both; the final latents are compared. Then the demo runs on the device.
"""
import json
import subprocess
import sys
import time
from pathlib import Path

import wan_torch

LIMIT_S = 150


def run(command):
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-300:]}")
    return time.monotonic() - start


def generate(program, device, dtype, folder, more):
    from safetensors.torch import load_file

    latents, video = folder / f"latents-{device.replace(':', '')}-{dtype}.safetensors", folder / "video.mp4"
    seconds = run([program, "generate", "--prompt", "a red star moves up", "--seed", "7", "--device", device, "--dtype", dtype,
                   "--dump-latents", latents, "--out", video, *more])
    return seconds, load_file(latents)["latents"]


def compared(program, device, dtype, folder, more):
    cpu_seconds, expected = generate(program, "cpu", dtype, folder, more)
    seconds, latents = generate(program, device, dtype, folder, more)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "relative_rmse": wan_torch.relative_rmse(latents, expected)}


def main():
    program, device, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    more = ["--steps", "2"] if "--tiny" in sys.argv else []
    work = {
        "generate f32": lambda: compared(program, device, "f32", folder, more),
        "generate bf16": lambda: compared(program, device, "bf16", folder, more),
        "demo": lambda: {"seconds": run([program, "demo", "--seed", "7", "--device", device, "--data-dir", folder / "demo-data", "--out", folder / "demo.mp4"])},
    }
    found = {}
    for name, measure in work.items():
        try:
            found[name] = measure()
        except (RuntimeError, OSError, KeyError, subprocess.TimeoutExpired) as error:
            found[name] = {"failed": str(error)[:300]}
        print(name, found[name], flush=True)
        (folder / "outputs.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
