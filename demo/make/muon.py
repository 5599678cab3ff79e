"""Muon: momentum whose update is made orthogonal; for the weight matrices inside the layers.

It needs about half the tokens AdamW needs here, which matters when the whole pretraining must run
on two processor cores. Matrices of one shape go through the iteration together.
"""

import torch


def orthogonalize(x, steps=5):
    """Five Newton-Schulz steps towards the nearest (semi-)orthogonal matrices of a stack."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon:
    def __init__(self, params, momentum=0.95, weight_decay=0.02):
        self.momentum, self.weight_decay = momentum, weight_decay
        groups = {}
        for p in params:
            groups.setdefault(tuple(sorted(p.shape)), []).append(p)
        self.groups = list(groups.values())
        self.state = [torch.zeros(len(g), *sorted(g[0].shape)) for g in self.groups]

    @torch.no_grad()
    def step(self, lr):
        for group, velocity in zip(self.groups, self.state):
            wide = [p.shape[0] <= p.shape[1] for p in group]
            grad = torch.stack([p.grad if w else p.grad.T for p, w in zip(group, wide)])
            velocity.lerp_(grad, 1 - self.momentum)
            update = orthogonalize(grad.lerp_(velocity, self.momentum))
            for p, w, u in zip(group, wide, update):
                # The scale keeps the step's RMS alike for every shape.
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - lr * self.weight_decay).add_(u if w else u.T, alpha=-lr * scale)
