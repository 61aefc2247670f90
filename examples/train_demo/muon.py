"""The Muon optimizer in float32 (Jordan et al., https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon computes in bfloat16, which a CPU without matrix instructions emulates slowly.
"""

from collections.abc import Iterable

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalized, for weight matrices.

    Steps are scaled to the root mean square of AdamW's, so that one learning rate serves both.

    Args:
        params: matrices.
        lr: learning rate.
        momentum: share of the old direction that is kept.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here evaluates twice
        """Moves each matrix against its orthogonalized Nesterov momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["direction"] = torch.zeros_like(parameter)
                share = 1 - group["momentum"]
                direction = state["direction"].lerp_(parameter.grad, share)
                update = orthogonalized(torch.lerp(parameter.grad, direction, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rms_of_adamw = 0.2 * max(parameter.shape) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * rms_of_adamw)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the matrix with all singular values moved near 1, by a Newton-Schulz iteration."""
    is_tall = matrix.size(0) > matrix.size(1)
    x: torch.Tensor = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
