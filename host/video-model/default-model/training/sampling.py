"""Conditioning and sampling: from captions (and known frames) to latents, with diffusers' own UniPC sampler."""
import torch
from diffusers import UniPCMultistepScheduler

KEY_FRAMES, SIZE, KEY_FRAME_FPS = 8, 128, 4
STEPS, GUIDANCE, SHIFT = 12, 3.0, 3.0
SCHEDULER = {"num_train_timesteps": 1000, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT,
             "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True, "final_sigmas_type": "zero"}


@torch.no_grad()
def grey_latents(vae, size=SIZE):
    """(1, z, 1, h, w): the latents of mid-grey, which stand for a frame that is not known."""
    return vae.encode(torch.zeros(1, 3, 1, size, size, device=next(vae.parameters()).device))


def model_input(noisy, mask, known, grey):
    """Channels [noisy z | mask 1 | known z]; mask (B,1,F,1,1) is 1 where `known` counts."""
    b, _, f, h, w = noisy.shape
    return torch.cat([noisy, mask.expand(b, 1, f, h, w), torch.where(mask > 0.5, known, grey.expand_as(noisy))], 1)


@torch.no_grad()
def generate(transformer, text, empty, noise, grey, known=None, mask=None, steps=STEPS, guidance=GUIDANCE, shift=SHIFT):
    """noise (B,z,F,h,w) -> latents. text, empty: states of the prompts and of the empty prompt."""
    scheduler = UniPCMultistepScheduler(**{**SCHEDULER, "flow_shift": shift})
    scheduler.set_timesteps(steps)
    rope = transformer.rope(*noise.shape[2:], noise.device)
    mask = noise.new_zeros(len(noise), 1, noise.shape[2], 1, 1) if mask is None else mask
    known = torch.zeros_like(noise) if known is None else known
    latents = noise
    for timestep in scheduler.timesteps:
        x, t = model_input(latents, mask, known, grey), timestep.to(noise.device).expand(len(noise))
        velocity = transformer(x, t, text, rope).float()
        if guidance > 1:
            without = transformer(x, t, empty.expand_as(text), rope).float()
            velocity = without + guidance * (velocity - without)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
