"""What fusing sibling projections gains, for the attention and the feed-forward block of Llamas of several sizes.

    python benches/fusion.py [--threads 2] [--rounds 15] [--dtypes float32,bfloat16]

Each figure is the time of the separate projections divided by that of the fused ones: above 1 the fused ones are faster.
Measured are whole blocks as transformers runs them, norms, rotary embedding and activation included and attention itself
left out, because what the fused projections hand on is strided. Layers take turns, so that weights come from memory as
they do in a model. Medians of interleaved rounds.
"""

import argparse
import copy
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import AttentionInterface

from pagedkv.models.fusion import FusedProjections, watch_linears
from pagedkv.models.surgery import exchange_activations

# Hidden size, query heads, key and value heads, size of a head, intermediate size.
SIZES = [
    (128, 4, 2, 32, 352),
    (256, 4, 2, 64, 704),
    (512, 8, 4, 64, 1408),
    (1024, 16, 8, 64, 2816),
    (2048, 32, 8, 64, 5632),
]
ROWS = (4, 16, 64, 512)
# So that weights do not stay in the last cache.
MODEL_BYTES = 96 << 20
MAX_LAYERS = 24
NO_ATTENTION = "bench_no_attention"

# Cosines and sines.
Rotary = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    """Prints one line per size, dtype and block."""
    parser = argparse.ArgumentParser(description="gain of fused projections")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    AttentionInterface.register(NO_ATTENTION, own_value)
    print(f"{'hidden':>6} {'dtype':>9} {'block':>10}" + "".join(f"{rows:>8}" for rows in ROWS))
    for size in SIZES:
        for dtype in arguments.dtypes.split(","):
            separate = build(size, getattr(torch, dtype))
            fused = fuse(copy.deepcopy(separate))
            for block in ("attention", "mlp"):
                ratios = [
                    measure(separate, fused, block, num_rows=rows, num_rounds=arguments.rounds)
                    for rows in ROWS
                ]
                line = "".join(f"{ratio:>8.2f}" for ratio in ratios)
                print(f"{size[0]:>6} {dtype:>9} {block:>10}{line}", flush=True)


def own_value(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Stands in for attention: every token's own value."""
    return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(1, 2), None


def build(size: tuple[int, ...], dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama of random weights with as many layers as the bytes allow."""
    hidden, num_query_heads, num_kv_heads, head_dim, intermediate = size
    per_layer = (
        hidden * (2 * num_query_heads + 2 * num_kv_heads) * head_dim + 3 * hidden * intermediate
    )
    num_layers = min(MAX_LAYERS, max(2, MODEL_BYTES // (per_layer * dtype.itemsize)))
    config = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=num_query_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        num_hidden_layers=num_layers,
        vocab_size=8,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation=NO_ATTENTION)  # noqa: SLF001 (as AutoModel does)
    exchange_activations(model)
    return model.to(dtype).eval()


def fuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model with fused projections."""
    with watch_linears(model) as calls, torch.inference_mode():
        run(model, "attention", *inputs(model, 4))
        run(model, "mlp", *inputs(model, 4))
    FusedProjections(model, calls.siblings(model, num_rows=4))
    return model


def inputs(model: LlamaForCausalLM, num_rows: int) -> tuple[torch.Tensor, Rotary]:
    """Hidden states [1, T, hidden] and the rotary tables."""
    hidden_states = torch.randn(1, num_rows, model.config.hidden_size).to(model.dtype)
    return hidden_states, model.model.rotary_emb(hidden_states, torch.arange(num_rows)[None])


def run(model: LlamaForCausalLM, block: str, hidden_states: torch.Tensor, rotary: Rotary) -> None:
    """One block of every layer, each over the same input."""
    for layer in model.model.layers:
        if block == "mlp":
            layer.mlp(layer.post_attention_layernorm(hidden_states))
        else:
            layer.self_attn(
                layer.input_layernorm(hidden_states),
                position_embeddings=rotary,
                attention_mask=None,
            )


@torch.inference_mode()
def measure(
    separate: LlamaForCausalLM,
    fused: LlamaForCausalLM,
    block: str,
    *,
    num_rows: int,
    num_rounds: int,
) -> float:
    """Time of the separate projections over that of the fused ones."""
    tensors = inputs(separate, num_rows)
    times: dict[nn.Module, list[float]] = {separate: [], fused: []}
    for round_idx in range(num_rounds + 1):
        for model in (separate, fused):
            started = time.perf_counter()
            run(model, block, *tensors)
            # The first round warms up.
            if round_idx:
                times[model].append(time.perf_counter() - started)
    return statistics.median(times[separate]) / statistics.median(times[fused])


if __name__ == "__main__":
    main()
