"""A Llama with random weights and a BPE tokenizer for measuring, made without a network.

    python benches/make_model.py OUT --size 32m

The weights depend on the size and the seed alone. The tokenizer is trained on the sources of
Python's standard library, so its merges differ between versions of Python; workloads are ids and
do not notice.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, END, PAD = "<s>", "</s>", "<pad>"
NUM_MERGED_TOKENS = 8192
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Geometry of one bench model."""

    hidden_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    ties_embeddings: bool


SIZES = {
    "32m": Size(
        hidden_size=512, num_layers=8, num_query_heads=8, num_kv_heads=4,
        intermediate_size=1408, vocab_size=8192, ties_embeddings=False,
    ),
    "158m": Size(
        hidden_size=1024, num_layers=12, num_query_heads=16, num_kv_heads=8,
        intermediate_size=2816, vocab_size=8192, ties_embeddings=False,
    ),
    "0.5b": Size(
        hidden_size=896, num_layers=24, num_query_heads=14, num_kv_heads=2,
        intermediate_size=4864, vocab_size=151_936, ties_embeddings=True,
    ),
}  # fmt: skip


def main() -> None:
    """Writes one model folder."""
    parser = argparse.ArgumentParser(description="writes a Llama with random weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="32m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bench_tokenizer().save_pretrained(arguments.out)
    model = random_llama(SIZES[arguments.size], seed=arguments.seed)
    model.to(getattr(torch, arguments.dtype)).save_pretrained(arguments.out)
    sys.stdout.write(f"{arguments.out}: {model.num_parameters() / 1e6:.1f} M parameters\n")


def random_llama(size: Size, *, seed: int) -> LlamaForCausalLM:
    """Returns a float32 Llama of this geometry with transformers' own initial weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_query_heads,
            num_key_value_heads=size.num_kv_heads,
            vocab_size=size.vocab_size,
            max_position_embeddings=4096,
            tie_word_embeddings=size.ties_embeddings,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def bench_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer on 120 files of the standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_MERGED_TOKENS,
        special_tokens=[BOS, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
    tokenizer.train([str(path) for path in files], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
