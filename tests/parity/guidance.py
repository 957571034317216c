"""Makes the goldens of guidance with diffusers' guiders as the oracle.

    pip install torch safetensors diffusers==0.42.1
    python tests/parity/guidance.py

`guidance.safetensors`, float32: `conditional` and `unconditional` (steps, 40), the network's two answers at each step, and for each
case `CASE` (steps, 40), the guided answers. The file's metadata has each case's settings as JSON, spelled as in a request.
"""
import json
from pathlib import Path

import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent / "goldens" / "guidance.safetensors"
STEPS, SIZE = 8, 40
INTERVALS = {"0..1": (0.0, 1.0), "0.2..0.7": (0.2, 0.7)}


def oracle(kind, options, scale, rescale, interval):
    start, stop = INTERVALS[interval]
    common = dict(guidance_scale=scale, guidance_rescale=rescale, start=start, stop=stop)
    if kind == "cfg":
        return ClassifierFreeGuidance(**common)
    if kind == "cfg-zero":
        return ClassifierFreeZeroStarGuidance(zero_init_steps=options["steps"], **common)
    return AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=options["momentum"], eta=options["parallel"],
                                     adaptive_projected_guidance_rescale=options["norm"], **common)


def main():
    random = torch.Generator().manual_seed(3)
    conditional = torch.randn(STEPS, SIZE, generator=random)
    unconditional = 0.6 * conditional + 0.5 * torch.randn(STEPS, SIZE, generator=random) + 0.1
    tensors, metadata = {"conditional": conditional, "unconditional": unconditional}, {}
    kinds = [("cfg", {}), ("cfg-zero", {"steps": 0}), ("cfg-zero", {"steps": 2})]
    kinds += [("apg", {"momentum": m, "norm": n, "parallel": p}) for m, n, p in [(0.0, 15.0, 1.0), (-0.5, 2.5, 0.0), (0.7, 0.0, 0.3)]]
    for kind, options in kinds:
        for scale, rescale, interval in [(6.0, 0.0, "0..1"), (6.0, 0.7, "0..1"), (3.5, 0.0, "0.2..0.7"), (3.5, 1.0, "0.2..0.7")]:
            guider = oracle(kind, options, scale, rescale, interval)
            rows = []
            for step in range(STEPS):
                guider.set_state(step, STEPS, None)
                if step == 0:
                    guider.prepare_inputs({})
                guided = guider.forward(conditional[step : step + 1], unconditional[step : step + 1]).pred[0]
                # Rescaling an answer of zeros divides zero by zero: it stays zero.
                left_out = kind == "cfg-zero" and step < options["steps"]
                rows.append(torch.zeros(SIZE) if left_out else guided)
            text = kind + ":" * bool(options) + ",".join(f"{k}={v}" for k, v in options.items())
            name = f"{text} {scale} {rescale} {interval}"
            tensors[name] = torch.stack(rows)
            metadata[name] = json.dumps({"kind": text, "scale": scale, "rescale": rescale, "interval": interval})
    save_file(tensors, GOLDEN, metadata=metadata)
    print(f"{GOLDEN.name}: {len(metadata)} cases, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
