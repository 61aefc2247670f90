"""Mixture-of-experts layers whose rows do not depend on each other's choices.

Transformers multiplies the rows that chose an expert at once, however many they are, and on a CPU the last bits of a
product depend on that number. Here each expert's rows are padded as a batch is, so that a row has the same bits whoever
else chose its expert. Registered with transformers' expert interface; models with expert code of their own keep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from pagedkv.models.packed_weight import PackedExperts
from pagedkv.models.padding import padded_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS_NAME = "pagedkv"


def use_padded_experts(model: PreTrainedModel) -> bool:
    """Switches the experts of ``model`` to `padded_experts`, if it has any that can be switched."""
    switchable = getattr(model, "_can_set_experts_implementation", None)
    if switchable is None or not switchable():
        return False
    model.set_experts_implementation(EXPERTS_NAME)
    return True


def padded_experts(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of each token's experts.

    Args:
        module: Holds ``gate_up_proj`` or ``up_proj``, ``down_proj`` [experts, out, in] (or transposed), biases, and flags
            that say which; its attributes are transformers' own.
        hidden_states: [T, hidden].
        top_k_index: [T, K] expert of each choice; an index past the last expert chooses none.
        top_k_weights: [T, K].

    Returns:
        [T, hidden].
    """
    num_choices = top_k_index.shape[-1]
    expert_ids = top_k_index.reshape(-1)
    # Of each (token, choice), flattened; summed over the choices at the end, in their order.
    outputs = hidden_states.new_zeros(expert_ids.shape[0], hidden_states.shape[-1])
    for expert_idx in torch.unique(expert_ids).tolist():
        if expert_idx >= module.num_experts:
            continue
        chosen = torch.nonzero(expert_ids == expert_idx).squeeze(1)
        num_rows = chosen.shape[0]
        rows = functional.pad(chosen // num_choices, (0, padded_rows(num_rows) - num_rows))
        result = _run_expert(module, expert_idx, hidden_states[rows])[:num_rows]
        outputs[chosen] = result.to(outputs.dtype) * top_k_weights.reshape(-1, 1)[chosen].to(
            outputs.dtype
        )
    return outputs.view(*top_k_index.shape, -1).sum(dim=-2)


def _run_expert(module: Any, expert_idx: int, rows: torch.Tensor) -> torch.Tensor:
    name = "gate_up_proj" if module.has_gate else "up_proj"
    hidden = _project(module, name, expert_idx, rows)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)  # noqa: SLF001
    result = _project(module, "down_proj", expert_idx, hidden)
    if module.has_post_expert_norm:
        result = module.post_expert_norm(result)
    return result


def _project(module: Any, name: str, expert_idx: int, rows: torch.Tensor) -> torch.Tensor:
    weights = getattr(module, name)
    bias = getattr(module, f"{name}_bias")[expert_idx] if module.has_bias else None
    if isinstance(weights, PackedExperts):
        return functional.linear(rows, weights.experts[expert_idx], bias)
    weight = weights[expert_idx]
    return functional.linear(rows, weight.T if module.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, padded_experts)
