"""Attention backends: one protocol, several ways to compute it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagedkv.attention.base import (
    AttentionBackend,
    LayerCache,
    LayerKind,
    LayerSpec,
    StepInputs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = [
    "BACKENDS",
    "AttentionBackend",
    "LayerCache",
    "LayerKind",
    "LayerSpec",
    "StepInputs",
    "create_backend",
    "prefers_columns",
    "resolve_backend",
]

BACKENDS = ("auto", "cpu", "torch")


def resolve_backend(name: str, device: torch.device) -> str:
    """The backend that ``name`` means on ``device``: itself, or for ``auto`` the best one that is there.

    Raises:
        ValueError: The name is unknown, or the backend cannot run on the device.
    """
    if name == "cuda":
        msg = (
            "attention_backend='cuda' is not part of this version yet; "
            "use 'torch' on a GPU, or 'auto'"
        )
        raise ValueError(msg)
    if name not in BACKENDS:
        msg = f"attention_backend must be one of {', '.join(BACKENDS)}, got {name!r}"
        raise ValueError(msg)
    if name == "auto":
        return "cpu" if device.type == "cpu" else "torch"
    if name == "cpu" and device.type != "cpu":
        msg = f"attention_backend='cpu' needs device='cpu', got {device}; use 'torch' or 'auto'"
        raise ValueError(msg)
    return name


def prefers_columns(name: str, *, block_size: int) -> bool:
    """Whether the backend ``name`` reads keys faster in columns (see `LayerCache`) of blocks of ``block_size``."""
    return name == "cpu" and block_size % 16 == 0


def create_backend(
    name: str,
    *,
    layers: Mapping[int, LayerSpec],
    caches: Mapping[int, LayerCache],
    device: torch.device,
) -> AttentionBackend:
    """Constructs an attention backend.

    Args:
        name: ``auto``, ``cpu`` or ``torch``.
        layers: The attention layers by index.
        caches: Their keys and values by index.
        device: Where the caches live.

    Raises:
        ValueError: See `resolve_backend`.
    """
    if resolve_backend(name, device) == "cpu":
        from pagedkv.attention.cpu_backend import CpuBackend

        return CpuBackend(layers=layers, caches=caches)
    from pagedkv.attention.torch_backend import TorchBackend

    return TorchBackend(layers=layers, caches=caches)
