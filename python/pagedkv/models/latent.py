"""Latent attention: caches the compressed keys and values that all heads share, and never expands them.

Models of the DeepSeek family compute one latent vector c of a few hundred numbers per token, and a rotated key k_r that
all heads share; every head's own key and value are W_UK c and W_UV c. Since q . (W_UK c) = (W_UK^T q) . c, a head can ask
the latents directly: its query is taken through W_UK once, attention runs over one key head (c, k_r) whose values are c,
and the result is taken through W_UV. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.

    cached per token     expanded: H * (nope + rope + v_dim)      latent: rank + rope

Prefill and decode use the same form, though a long prefill would take fewer operations with expanded keys: a token's bits
would otherwise depend on how its prompt was cut into chunks.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pagedkv.attention.interface import LATENT_ATTRIBUTE, NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# Tokens of the check.
_NUM_CHECKED = 16
# Of the largest number compared, by the size of the weight's dtype in bytes.
_TOLERANCE = {2: 0.05, 4: 1e-4, 8: 1e-9}


def use_latent_attention(model: nn.Module) -> int:
    """Lets the attention modules of ``model`` that are latent hand over latents under this package's attention names.

    They are found by structure, and each is compared with its own expansion first; one that computes anything else keeps
    its expanded keys and values.

    Returns:
        How many there are.
    """
    num_latent = 0
    for name, module in model.named_modules():
        if not _looks_latent(module):
            continue
        latent = LatentAttention(module)
        if latent.is_exact():
            setattr(module, LATENT_ATTRIBUTE, latent)
            module.expand_kv = latent.hand_over
            num_latent += 1
        else:
            logger.info("%s caches expanded keys and values: it is no plain latent attention", name)
    if num_latent:
        logger.info("%d layers cache latents in place of keys and values", num_latent)
    return num_latent


class LatentAttention:
    """What stands before and behind the attention of one module when it runs over latents.

    Symbols: H heads, T tokens, N and P the sizes of the unrotated and the rotated part of a key, R the rank.
    """

    def __init__(self, module: Any) -> None:
        """Takes views of the module's expanding weight; copies nothing.

        Args:
            module: Has ``kv_b_proj`` [H * (N + Dv), R] and ``expand_kv``; its attributes are transformers' own.
        """
        self._module = module
        self._expand_kv: Callable[..., tuple[torch.Tensor, torch.Tensor]] = module.expand_kv
        self.rank: int = module.kv_lora_rank
        self.nope_dim: int = module.qk_nope_head_dim
        self.rope_dim: int = module.qk_rope_head_dim
        weight = module.kv_b_proj.weight.detach()
        per_head = weight.view(-1, self.nope_dim + module.v_head_dim, self.rank)
        self._key_weight = per_head[:, : self.nope_dim]
        self._value_weight = per_head[:, self.nope_dim :].transpose(1, 2)

    def hand_over(
        self, latent: torch.Tensor, rotated: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The key (latent, rotated) [1, 1, T, R + P] and the value, which is a view of its first R numbers.

        Under an attention that is not this package's: the expanded ones.
        """
        if self._module.config._attn_implementation not in NAMES:  # noqa: SLF001 (has no public reader)
            return self._expand_kv(latent, rotated)
        key = torch.cat([latent, rotated], dim=-1)
        return key, key[..., : self.rank]

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Queries [1, H, T, N + P] as queries to latents [1, H, T, R + P]."""
        unrotated, rotated = query.split([self.nope_dim, self.rope_dim], dim=-1)  # type: ignore[no-untyped-call]
        return torch.cat([_product(unrotated, self._key_weight), rotated], dim=-1)

    def expand(self, output: torch.Tensor) -> torch.Tensor:
        """Mixed latents [1, T, H, R] as mixed values [1, T, H, Dv]."""
        return _product(output.transpose(1, 2), self._value_weight).transpose(1, 2)

    @torch.inference_mode()
    def is_exact(self) -> bool:
        """Whether scores and values equal those over the module's own expanded keys, for random tokens."""
        weight = self._key_weight
        generator = torch.Generator().manual_seed(0)

        def draw(num_heads: int, size: int) -> torch.Tensor:
            numbers = torch.randn(1, num_heads, _NUM_CHECKED, size, generator=generator)
            return numbers.to(device=weight.device, dtype=weight.dtype)

        latent, rotated = draw(1, self.rank), draw(1, self.rope_dim)
        query = draw(weight.shape[0], self.nope_dim + self.rope_dim)
        try:
            key, value = self._expand_kv(latent, rotated)
            scores = query.float() @ key.float().transpose(2, 3)
            absorbed = self.absorb(query)
            own = torch.cat([latent, rotated], dim=-1).float()
            # A token's own value, as each head would read it.
            mixed = latent.expand(-1, weight.shape[0], -1, -1).transpose(1, 2)
            tolerance = _TOLERANCE[weight.dtype.itemsize]
            return all(
                _agree(actual, expected, tolerance)
                for actual, expected in (
                    (absorbed.float() @ own.transpose(2, 3), scores),
                    (self.expand(mixed).transpose(1, 2), value),
                )
            )
        except (RuntimeError, TypeError, ValueError) as error:
            logger.debug("not the shapes of latent attention: %s", error)
            return False


def _looks_latent(module: nn.Module) -> bool:
    linear: Any = getattr(module, "kv_b_proj", None)
    sizes: list[Any] = [getattr(module, name, None) for name in _SIZES]
    if not callable(getattr(module, "expand_kv", None)) or type(linear) is not nn.Linear:
        return False
    if not all(isinstance(size, int) for size in sizes):
        return False
    rank, nope_dim, _, v_dim = sizes
    has_bias = getattr(linear, "bias", None) is not None
    return (
        not has_bias
        and linear.weight.shape[1] == rank
        and linear.out_features % (nope_dim + v_dim) == 0
    )


def _product(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Rows [1, H, T, K] of each head times its weight [H, K, L]: [1, H, T, L].

    On a CPU 16-bit numbers are multiplied as float32: torch's own batched product of them took 10 to 50 times as long.
    """
    if rows.device.type == "cpu" and rows.dtype.itemsize == 2:
        return (rows.float() @ weights.float()).to(rows.dtype)
    return rows @ weights


def _agree(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if actual.shape != expected.shape:
        return False
    largest = expected.float().abs().max()
    difference = (actual.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * largest)
