"""The fast path for attention classes of transformers that bring code of their own.

Some older models compute attention inside their class and never call the attention interface, though it is nothing but
causal attention over rotated queries and keys. An adapter takes the place of that one method in every layer and calls the
interface instead; the probes then look at the model like at any other. What cannot be adapted runs on the slow path.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class _Attend(Protocol):
    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """[1, H, T, Dk], [1, Hkv, T, Dk], [1, Hkv, T, Dv] -> [1, T, H, Dv], scores divided by sqrt(Dk)."""


# (attend, attention module, what the replaced method was called with) -> what that method returns
_Adapter = Callable[..., tuple[torch.Tensor, None]]


def adapt_attention(model: PreTrainedModel) -> bool:
    """Puts an adapter into every attention module that has one.

    Returns:
        Whether any was put in. The attention implementation is then chosen with `use_implementation`.
    """
    attend = partial(_attend, model)
    adapted = False
    for module in model.modules():
        found = _ADAPTERS.get((type(module).__module__, type(module).__name__))
        if found is not None and not getattr(model.config, "alibi", False):
            method, adapter = found
            setattr(module, method, partial(adapter, attend, module))
            adapted = True
    return adapted


def restore_attention(model: PreTrainedModel) -> None:
    """Undoes `adapt_attention`; does nothing to a model that was not adapted."""
    for module in model.modules():
        found = _ADAPTERS.get((type(module).__module__, type(module).__name__))
        if found is not None:
            # The instance's attribute hid the method of the class.
            vars(module).pop(found[0], None)


def use_implementation(model: PreTrainedModel, name: str) -> None:
    """Chooses the attention implementation of an adapted model, which transformers believes to have no choice."""
    model.config._attn_implementation = name  # noqa: SLF001 (the public setter looks at the source of the model's module)


def _attend(
    model: PreTrainedModel,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    function = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]  # noqa: SLF001 (has no public getter)
    # Rotary tables in float32 leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    output: torch.Tensor = function(
        module, query, key, value, mask, scaling=query.shape[-1] ** -0.5
    )[0]
    return output


def _inner_attention(
    attend: _Attend,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """Stands for ``_attn``, which is given rotated queries and keys and returns [1, H, T, D]."""
    return attend(module, query, key, value, attention_mask).transpose(1, 2), None


def _falcon_attention(
    attend: _Attend,
    module: Any,
    hidden_states: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stands for ``forward`` of a Falcon with rotary embeddings.

    The new decoder architecture repeats its key heads before it stores them; here each is stored once.
    """
    fused = module.query_key_value(hidden_states)
    if module.new_decoder_architecture:
        heads = fused.unflatten(-1, (module.num_kv_heads, -1, module.head_dim))
        query, key, value = heads[..., :-2, :].flatten(2, 3), heads[..., -2, :], heads[..., -1, :]
    else:
        query, key, value = module._split_heads(fused)  # noqa: SLF001 (of the class that is stood for)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    rotate = importlib.import_module(type(module).__module__).apply_rotary_pos_emb
    query, key = rotate(query, key, *position_embeddings)
    output = attend(module, query, key, value, attention_mask)
    return module.dense(output.flatten(2)), None


# (module, class) of attention in transformers -> the method that is stood for, and its adapter. Classes of remote code
# have other modules.
_ADAPTERS: dict[tuple[str, str], tuple[str, _Adapter]] = {
    ("transformers.models.falcon.modeling_falcon", "FalconAttention"): (
        "forward",
        _falcon_attention,
    ),
    ("transformers.models.gptj.modeling_gptj", "GPTJAttention"): ("_attn", _inner_attention),
    ("transformers.models.codegen.modeling_codegen", "CodeGenAttention"): (
        "_attn",
        _inner_attention,
    ),
    (
        "transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese",
        "GPTNeoXJapaneseAttention",
    ): ("_attn", _inner_attention),
}
