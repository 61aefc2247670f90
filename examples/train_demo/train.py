"""Trains the demo model: corpus, tokenizer, a small Llama, export. No network, one CPU thread.

    python train.py OUT [--steps 3600] [--seed 0]

The same seed and number of steps on the same kind of machine give the same weights. The shipped
model is the default run. The corpus is endless in effect (each document is seen once), so the
validation loss printed is that of text never trained on.
"""

import argparse
import copy
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from corpus import ASSISTANT, BOS, END, PAD, SPECIAL_TOKENS, SYSTEM, USER, documents
from muon import Muon
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("train_demo")

VOCAB_SIZE = 1024
MAX_POSITIONS = 2048
VALIDATION_SEED = 999_983

CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}\n"
    "{{- raise_exception('roles are system, user and assistant, got ' + message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|assistant|>' -}}\n"
    "{%- endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A share of the training with rows of one length; a step has the same tokens in each."""

    share: float
    row_len: int
    num_rows: int
    isolates_documents: bool


# Alone, a document teaches most per second: the name to repeat is the only name to be seen. The long
# rows at the end teach the model to look past a full context of other text.
PHASES = (
    Phase(share=0.78, row_len=256, num_rows=4, isolates_documents=True),
    Phase(share=0.22, row_len=1024, num_rows=1, isolates_documents=False),
)
TOKENS_PER_STEP = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--validate-every", type=int, default=400)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    tokenizer = train_tokenizer(arguments.seed + 1)
    # About 88 tokens a document; a fifth more than needed, so that no document is seen twice.
    num_documents = max(2000, arguments.steps * TOKENS_PER_STEP // 70)
    train_ids = encoded(tokenizer, documents(arguments.seed + 1, num_documents))
    validation_ids = encoded(tokenizer, documents(VALIDATION_SEED, 700))
    model = LlamaForCausalLM(model_config())
    logger.info(
        "%d parameters, %.1f M training tokens at hand, %d validation tokens",
        model.num_parameters(), len(train_ids) / 1e6, len(validation_ids),
    )  # fmt: skip
    train(
        model, train_ids, validation_ids, num_steps=arguments.steps,
        learning_rate=arguments.learning_rate, seed=arguments.seed,
        validate_every=arguments.validate_every,
        on_validation=lambda: export(model, tokenizer, arguments.out),
    )  # fmt: skip


def model_config() -> LlamaConfig:
    """Returns the geometry: grouped heads of size 64, so that common attention kernels serve it."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(END),
        initializer_range=0.05,
    )


def train_tokenizer(seed: int) -> Tokenizer:
    """Trains byte-level BPE on the text between the markup; encoding adds the first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = documents(seed, 12_000)
    for special in (BOS, END, SYSTEM, USER, ASSISTANT):
        texts = [text.replace(special, "\n") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B",
                special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))],
            ),
        ]
    )
    return tokenizer


def encoded(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """Returns the ids of all documents, one after the other, int64 [num_tokens]."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])


def train(
    model: LlamaForCausalLM,
    train_ids: NDArray[np.int64],
    validation_ids: NDArray[np.int64],
    *,
    num_steps: int,
    learning_rate: float,
    seed: int,
    validate_every: int,
    on_validation: Callable[[], None],
) -> None:
    """Trains in place with a cosine schedule, reading `train_ids` from front to end.

    `on_validation` is called after every `validate_every` steps and after the last one.

    Muon moves the matrices of the layers; AdamW moves the embeddings and the norms.
    """
    layers = model.model.layers
    matrices = [parameter for parameter in layers.parameters() if parameter.ndim == 2]
    others = [
        *model.model.embed_tokens.parameters(),
        *model.model.norm.parameters(),
        *(parameter for parameter in layers.parameters() if parameter.ndim != 2),
    ]
    optimizers = (
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    generator = np.random.default_rng(seed)
    started = time.process_time()
    model.train()
    for step in range(num_steps):
        done = step / num_steps
        phase = PHASES[0] if done < PHASES[0].share else PHASES[1]
        ids = train_ids[step * TOKENS_PER_STEP : (step + 1) * TOKENS_PER_STEP]
        warm_up = min(1.0, (step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate * warm_up * (0.02 + 0.98 * cosine)
        rows = ids.reshape(phase.num_rows, phase.row_len)
        loss = row_loss(model, rows, phase_positions(phase, rows, generator))
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % validate_every == 0 or step + 1 == num_steps:
            alone, far = validation_losses(model, validation_ids)
            logger.info(
                "step %d, %.2f M tokens, %.0f CPU s: train %.3f, validation %.4f (documents alone), "
                "%.4f (over all positions)",
                step + 1, (step + 1) * TOKENS_PER_STEP / 1e6, time.process_time() - started,
                loss.item(), alone, far,
            )  # fmt: skip
            on_validation()
    model.eval()


def row_loss(
    model: LlamaForCausalLM, rows: NDArray[np.int64], positions: NDArray[np.int64]
) -> torch.Tensor:
    """Returns the mean loss of rows [N, L] at these positions [N, L], in nats a token.

    Where positions begin again at 0, a document begins that sees nothing before it: transformers
    masks packed rows so when there is neither a mask nor a cache. A mask of ones asks for no such
    thing and leaves earlier documents visible, as earlier turns are in a chat.
    """
    ids = torch.from_numpy(rows)
    is_packed = bool((np.diff(positions) < 0).any())
    output = model(
        input_ids=ids,
        attention_mask=None if is_packed else torch.ones_like(ids),
        position_ids=torch.from_numpy(positions),
        labels=ids,
        use_cache=False,
    )
    loss: torch.Tensor = output.loss
    return loss


def isolated_positions(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns positions [N, L] that begin again at 0 with every document."""
    positions = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
    for row, start in np.argwhere(rows == SPECIAL_TOKENS.index(BOS)):
        positions[row, start:] = np.arange(rows.shape[1] - start)
    return positions


def spread_positions(rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns positions [N, L] with random gaps between documents, over the whole context.

    Rotary positions only count as distances, so gaps show the model all distances up to its context
    length, though its rows are shorter.
    """
    row_len = rows.shape[1]
    positions = np.tile(np.arange(row_len), (len(rows), 1))
    for row in range(len(rows)):
        starts = np.flatnonzero(rows[row] == SPECIAL_TOKENS.index(BOS))
        room = generator.integers(MAX_POSITIONS - row_len + 1)
        cuts = np.sort(generator.integers(room + 1, size=len(starts)))
        for start, gap in zip(starts, np.diff(cuts, prepend=0), strict=True):
            positions[row, start:] += gap
    return positions


@torch.no_grad()
def validation_losses(model: LlamaForCausalLM, ids: NDArray[np.int64]) -> list[float]:
    """Returns the mean loss over 16,384 unseen tokens in the rows of each phase."""
    generator = np.random.default_rng(0)
    model.eval()
    means = []
    for phase in PHASES:
        losses = [
            row_loss(model, rows, phase_positions(phase, rows, generator)).item()
            for rows in ids[:16_384].reshape(-1, phase.num_rows, phase.row_len)
        ]
        means.append(sum(losses) / len(losses))
    model.train()
    return means


def phase_positions(
    phase: Phase, rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Returns the positions [N, L] of rows of a phase."""
    if phase.isolates_documents:
        return isolated_positions(rows)
    return spread_positions(rows, generator)


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the model as bfloat16 safetensors with tokenizer, chat template and settings."""
    generation = model.generation_config
    generation.eos_token_id = SPECIAL_TOKENS.index(END)
    generation.pad_token_id = SPECIAL_TOKENS.index(PAD)
    generation.bos_token_id = SPECIAL_TOKENS.index(BOS)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
        if path.suffix in (".json", ".jinja"):
            path.write_text(path.read_text().rstrip("\n") + "\n")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    logger.info("%s: %.2f MB, %s", out, sum(sizes.values()) / 1e6, sizes)


if __name__ == "__main__":
    main()
