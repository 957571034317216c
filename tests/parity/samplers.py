"""Makes the goldens of the samplers with diffusers' flow-matching schedulers as the oracle.

    pip install torch numpy safetensors diffusers==0.42.1
    python tests/parity/samplers.py

`samplers.safetensors`, all float32, for each case `NAME.sSHIFT.nSTEPS` (NAME: euler, unipc):
`CASE.sigmas` (steps + 1), `CASE.timesteps` (steps), and `CASE.trajectory` (steps + 1, 4): the latent before the first step and
after each one. The model is `velocity` below, so that a test needs no network.
"""
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent / "goldens" / "samplers.safetensors"
START = [-1.5, -0.25, 0.5, 2.0]
CASES = [(shift, 10) for shift in (1.0, 3.0, 5.0, 8.0)] + [(3.0, 1), (3.0, 2), (8.0, 50)]


def velocity(x, t):
    """Bends with the latent and with time, so that a wrong time, sign or history shows."""
    return 0.8 * torch.tanh(x) + 0.3 * torch.cos(t / 160) - 0.1 * x * t / 1000


def scheduler(name, shift):
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2)


def main():
    tensors = {}
    for name in ("euler", "unipc"):
        for shift, steps in CASES:
            oracle = scheduler(name, shift)
            oracle.set_timesteps(steps)
            x = torch.tensor([START])
            trajectory = [x[0]]
            for t in oracle.timesteps:
                x = oracle.step(velocity(x, t.float()), t, x, return_dict=False)[0]
                trajectory.append(x[0])
            case = f"{name}.s{shift:g}.n{steps}"
            tensors[f"{case}.sigmas"] = oracle.sigmas.float()
            tensors[f"{case}.timesteps"] = oracle.timesteps.float()
            tensors[f"{case}.trajectory"] = torch.stack(trajectory)
            print(case, [round(v, 4) for v in x[0].tolist()])
    save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDEN)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
