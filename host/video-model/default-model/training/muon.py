"""Muon: momentum made orthogonal, for the transformer blocks' matrices (Jordan et al., 2024). Matrices of one shape share one product."""
import torch


def orthogonal(x):
    """Newton-Schulz in bfloat16: singular values of each matrix (N,a,b) to about one."""
    x = x.bfloat16()
    turned = x.shape[1] > x.shape[2]
    x = x.mT if turned else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            for shape, params in by_shape.items():
                ahead = []
                for param in params:
                    average = self.state[param].setdefault("average", torch.zeros_like(param))
                    average.lerp_(param.grad, 1 - group["momentum"])
                    ahead.append(param.grad.lerp(average, group["momentum"]))
                updates = orthogonal(torch.stack(ahead)).to(params[0].dtype)
                for param, update in zip(params, updates):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=0.2 * max(shape) ** 0.5 * group["lr"])
