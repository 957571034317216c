"""Makes the goldens of the samplers with diffusers' schedulers as the oracle.

    pip install torch numpy scipy safetensors diffusers==0.42.1
    python tests/parity/samplers.py

`samplers.safetensors`, all float32. The file's metadata has one entry a case: its name, and its settings as JSON (keys as in
`SamplerSettings`; `process` is left out for a flow). For each case: `CASE.timesteps` (steps), `CASE.sigmas` (steps, the share of
noise in the latent) and `CASE.trajectory` (steps + 1, 4): the latent before the first step and after each one. `noise` (steps, 4)
is what a stochastic sampler gets at each step. The model is `answer` below, so that a test needs no network.

What diffusers has no scheduler for is put together from what it has:
- DDIM and DDPM on a flow: a flow with a = 1 - s and a variance-preserving process with the same s/a differ by a factor,
  sqrt(a^2 + s^2), so diffusers' DDIM and DDPM run with the flow's s/a on scaled latents.
- UniPC and DPM-Solver++ on a flow with exponential and beta sigmas (and DPM-Solver++ with Karras sigmas): the recipe of UniPC with
  Karras sigmas, which is to spread s/(1 - s) between the limits of the discrete process; the scheduler's own conversion is used.
- Euler on a discrete process works on x/a; the latent is scaled before and after.
UniPC runs in float64: at order 3 its float32 loses half its digits.
"""
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler, LTXEulerAncestralRFScheduler,
                       UniPCMultistepScheduler)
from diffusers.schedulers import (scheduling_ddim, scheduling_ddpm, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete,
                                  scheduling_flow_match_lcm, scheduling_lcm, scheduling_ltx_euler_ancestral_rf)
from safetensors.torch import save_file

torch.set_num_threads(1)
GOLDEN = Path(__file__).resolve().parent / "goldens" / "samplers.safetensors"
START = torch.tensor([[-1.5, -0.25, 0.5, 2.0]])
NOISE = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(5))
SPREADS = {"uniform": {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
           "beta": {"use_beta_sigmas": True}}
PREDICTIONS = {"epsilon": "epsilon", "velocity": "v_prediction", "sample": "sample"}
drawn = [0]


def draw(shape, **_):
    return NOISE[drawn[0]].to(torch.float64)


for module in (scheduling_ddim, scheduling_ddpm, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete,
               scheduling_flow_match_lcm, scheduling_lcm, scheduling_ltx_euler_ancestral_rf):
    module.randn_tensor = draw


def answer(x, t):
    """Bends with the latent and with time, so that a wrong time, sign or history shows."""
    return 0.8 * torch.tanh(x) + 0.3 * torch.cos(t / 160) - 0.1 * x * t / 1000


def run(oracle, scale=None, **options):
    """The trajectory; `scale` (steps + 1) is what the oracle's latent is larger by than ours."""
    oracle._begin_index = 0
    count = len(oracle.timesteps)
    scale = torch.ones(count + 1, dtype=torch.float64) if scale is None else scale
    x = START.double()
    trajectory = [x[0]]
    for i, t in enumerate(oracle.timesteps):
        drawn[0] = i
        y = oracle.step(answer(x, told(oracle, i)), t, x * scale[i], return_dict=False, **options)[0]
        x = y.double() / scale[i + 1]
        trajectory.append(x[0])
    return torch.stack(trajectory)


def told(oracle, i):
    return getattr(oracle, "told", oracle.timesteps)[i].double()


def spread_ratios(oracle, schedule, steps):
    """Sigmas of a flow by UniPC's recipe for Karras sigmas, put into `oracle`."""
    ratios = np.flip(np.array(((1 - oracle.alphas_cumprod) / oracle.alphas_cumprod) ** 0.5)).copy()
    convert = {"karras": oracle._convert_to_karras, "exponential": oracle._convert_to_exponential, "beta": oracle._convert_to_beta}
    sigmas = convert[schedule](in_sigmas=ratios, num_inference_steps=steps)
    sigmas = sigmas / (1 + sigmas)
    oracle.timesteps = torch.from_numpy((sigmas * 1000).copy()).to(torch.int64)
    oracle.sigmas = torch.from_numpy(np.concatenate([sigmas, [0]]).astype(np.float32))


def flow_grid(schedule, shift, steps):
    grid = FlowMatchEulerDiscreteScheduler(shift=shift, **SPREADS[schedule])
    grid.set_timesteps(steps)
    return grid


def flow(sampler, schedule, shift, steps, eta, order, kind):
    """Timesteps, shares of noise, trajectory."""
    if sampler in ("unipc", "dpmpp-2m", "dpmpp-2m-sde"):
        common = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=order)
        if sampler == "unipc":
            oracle = UniPCMultistepScheduler(solver_type=kind, **common, **(SPREADS[schedule] if schedule == "karras" else {}))
        else:
            algorithm = "dpmsolver++" if sampler == "dpmpp-2m" else "sde-dpmsolver++"
            oracle = DPMSolverMultistepScheduler(algorithm_type=algorithm, **common)
        oracle.set_timesteps(steps)
        if schedule in ("exponential", "beta") or (schedule == "karras" and sampler != "unipc"):
            spread_ratios(oracle, schedule, steps)
        oracle.sigmas = oracle.sigmas.double()
        if kind == "bh1":
            # At 0 the scheduler multiplies an infinite B(h) by nothing and answers NaN.
            oracle.sigmas[-1] = 1e-30
        return oracle.timesteps, oracle.sigmas[:-1], run(oracle)
    grid = flow_grid(schedule, shift, steps)
    shares = grid.sigmas[:-1]
    if sampler == "lcm":
        oracle = FlowMatchLCMScheduler(shift=shift, **SPREADS[schedule])
        oracle.set_timesteps(steps)
    elif sampler == "euler" and eta == 0:
        oracle = grid
    elif sampler == "euler":
        oracle = LTXEulerAncestralRFScheduler(eta=eta)
        oracle.set_timesteps(sigmas=grid.sigmas)
        oracle.timesteps = oracle.timesteps[:-1]
    else:
        s = grid.sigmas.double()
        scale = 1 / ((1 - s) ** 2 + s**2) ** 0.5
        oracle = (DDIMScheduler if sampler == "ddim" else DDPMScheduler)(num_train_timesteps=steps, clip_sample=False, prediction_type="sample")
        oracle.set_timesteps(steps)
        oracle.alphas_cumprod = (((1 - s) * scale) ** 2)[:-1].flip(0)
        return grid.timesteps, shares, run_as_samples(oracle, grid, s, scale, {"eta": eta} if sampler == "ddim" else {})
    return oracle.timesteps, shares, run(oracle)


def run_as_samples(oracle, grid, s, scale, options):
    """Like `run`, for an oracle that is told the picture instead of the velocity."""
    x = START.double()
    trajectory = [x[0]]
    for i, t in enumerate(oracle.timesteps):
        drawn[0] = i
        picture = x - s[i] * answer(x, grid.timesteps[i].double())
        x = oracle.step(picture, t, x * scale[i], return_dict=False, **options)[0].double() / scale[i + 1]
        trajectory.append(x[0])
    return torch.stack(trajectory)


def discrete(sampler, schedule, steps, eta, order, kind, process):
    betas = dict(beta_start=process["beta_start"], beta_end=process["beta_end"], beta_schedule=process["betas"].replace("-", "_"))
    common = dict(prediction_type=PREDICTIONS[process["prediction"]], timestep_spacing=process["spacing"],
                  steps_offset=process["steps_offset"], **betas)
    options, scaled = {}, False
    if sampler == "unipc":
        oracle = UniPCMultistepScheduler(solver_order=order, solver_type=kind, **SPREADS[schedule], **common)
    elif sampler.startswith("dpmpp"):
        algorithm = "dpmsolver++" if sampler == "dpmpp-2m" else "sde-dpmsolver++"
        oracle = DPMSolverMultistepScheduler(solver_order=order, algorithm_type=algorithm, **SPREADS[schedule], **common)
    elif sampler == "euler":
        oracle = EulerDiscreteScheduler(**SPREADS[schedule], **common) if eta == 0 else EulerAncestralDiscreteScheduler(**common)
        oracle.is_scale_input_called = scaled = True
    elif sampler == "lcm":
        oracle = LCMScheduler(**{**common, "timestep_spacing": "leading"}, clip_sample=False)
    elif sampler == "ddim":
        oracle, options = DDIMScheduler(clip_sample=False, set_alpha_to_one=process["ends_clean"], **common), {"eta": eta}
    else:
        oracle = DDPMScheduler(clip_sample=False, **common)
    oracle.set_timesteps(steps)
    oracle.alphas_cumprod = oracle.alphas_cumprod.double()
    if sampler in ("ddim", "ddpm", "lcm"):
        return oracle.timesteps, (1 - oracle.alphas_cumprod[oracle.timesteps]) ** 0.5, run(oracle, **options)
    if sampler != "euler" and schedule in ("exponential", "beta"):
        # A whole number that float32 left a last digit too small is not cut to the one below.
        ratios = ((1 - oracle.alphas_cumprod) / oracle.alphas_cumprod).sqrt().numpy()
        times = [oracle._sigma_to_t(sigma, np.log(ratios)) for sigma in oracle.sigmas[:-1].numpy()]
        oracle.timesteps = torch.tensor(np.trunc(np.round(np.array(times), 4)), dtype=torch.int64)
    oracle.sigmas = oracle.sigmas.double()
    up = (1 + oracle.sigmas**2) ** 0.5
    return oracle.timesteps, (oracle.sigmas / up)[:-1], run(oracle, scale=up if scaled else None)


FLOW_DEFAULT = dict(schedule="uniform", shift=3.0, steps=10, eta=0.0, solver_order=2, solver_type="bh2")
STABLE = dict(betas="scaled-linear", beta_start=0.00085, beta_end=0.012, prediction="epsilon", spacing="leading", steps_offset=1, ends_clean=False)
ANIMATE = dict(STABLE, betas="linear", spacing="linspace", ends_clean=True)


def cases():
    """Settings by name."""
    def case(sampler, process=None, **changes):
        settings = {"sampler": sampler, **FLOW_DEFAULT, **changes}
        name = ".".join([sampler, *(f"{k}={v}" for k, v in changes.items()), *(["discrete"] if process else [])])
        if process:
            settings["process"] = process
            name += "." + ".".join(str(process[k]) for k in ("betas", "prediction", "spacing", "steps_offset"))
        return name, settings

    for sampler in ("euler", "unipc", "dpmpp-2m", "dpmpp-2m-sde", "ddim", "ddpm", "lcm"):
        multistep = sampler in ("unipc", "dpmpp-2m", "dpmpp-2m-sde")
        for shift, steps in [(1.0, 10), (5.0, 10), (3.0, 1), (3.0, 2), (8.0, 50)]:
            yield case(sampler, shift=shift, steps=steps)
        for schedule in ("karras", "exponential", "beta"):
            for steps in (1, 3, 12):
                yield case(sampler, schedule=schedule, steps=steps)
        for order in {"unipc": (1, 3), "dpmpp-2m": (1,), "dpmpp-2m-sde": (1,)}.get(sampler, ()):
            yield case(sampler, solver_order=order)
            yield case(sampler, solver_order=order, schedule="karras", steps=25)
        for eta in (0.4, 1.0) if sampler in ("euler", "ddim") else ():
            yield case(sampler, eta=eta)
            yield case(sampler, eta=eta, shift=7.0, steps=4)
        # The classic process.
        for process in (STABLE, ANIMATE, dict(STABLE, spacing="trailing", prediction="velocity"), dict(ANIMATE, prediction="sample")):
            if sampler == "euler" and process["prediction"] == "sample":
                continue
            for steps in (2, 7, 20):
                yield case(sampler, process, steps=steps)
            if sampler in ("euler", "ddim"):
                yield case(sampler, process, steps=7, eta=1.0)
        for schedule in ("karras", "exponential", "beta") if multistep or sampler == "euler" else ():
            yield case(sampler, STABLE, schedule=schedule, steps=7)
    for order in (1, 2, 3):
        yield case("unipc", solver_type="bh1", solver_order=order)
        yield case("unipc", ANIMATE, solver_order=order, steps=9)


def main():
    tensors, metadata = {"noise": NOISE[:, 0]}, {}
    for name, settings in cases():
        keys = ("eta", "solver_order", "solver_type")
        eta, order, kind = (settings[k] for k in keys)
        if "process" in settings:
            parts = discrete(settings["sampler"], settings["schedule"], settings["steps"], eta, order, kind, settings["process"])
        else:
            parts = flow(settings["sampler"], settings["schedule"], settings["shift"], settings["steps"], eta, order, kind)
        assert name not in metadata and torch.isfinite(parts[2]).all(), name
        metadata[name] = json.dumps(settings)
        for part, values in zip(("timesteps", "sigmas", "trajectory"), parts):
            tensors[f"{name}.{part}"] = values.float().contiguous()
        print(name, [round(v, 4) for v in parts[2][-1].tolist()])
    save_file(tensors, GOLDEN, metadata=metadata)
    print(f"{GOLDEN.name}: {len(metadata)} cases, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
