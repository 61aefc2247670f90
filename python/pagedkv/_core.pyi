"""The Rust crates as seen from Python."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "NO_TOKEN",
    "VERSION",
    "Batch",
    "BeamOptions",
    "Grammar",
    "GrammarCompiler",
    "KvCacheManager",
    "PrefixMatch",
    "RequestResult",
    "Scheduler",
    "SequenceHandle",
    "SequenceResult",
    "StepBuffers",
    "StepOutput",
    "TextDecoder",
    "TokenTable",
    "apply_masks",
    "best_tokens",
    "copy_blocks",
    "cpu_isa",
    "fill_masks",
    "gelu",
    "gelu_tanh",
    "gumbel_noise",
    "kv_write",
    "linear",
    "num_threads",
    "paged_attention",
    "rms_norm",
    "rotate",
    "sample_tokens",
    "set_cpu_isa",
    "set_num_threads",
    "silu",
]

VERSION: str
"""The version of the package."""

# --- text ---

class _TextStream(Protocol):
    def step(self, token_id: int, /) -> str: ...
    def flush(self) -> str: ...
    def fork(self) -> _TextStream: ...

@final
class TokenTable:
    """The bytes of every token of a tokenizer, in one arena.

    The three constructors take the string of each id, in order, with None where an id has none,
    and the strings that are special tokens.

    Raises:
        ValueError: a token that the table cannot express.
    """

    @staticmethod
    def byte_level(tokens: Sequence[str | None], *, special_tokens: set[str]) -> TokenTable:
        """A tokenizer whose decoder is ``ByteLevel``."""

    @staticmethod
    def byte_fallback(
        tokens: Sequence[str | None],
        *,
        special_tokens: set[str],
        replacements: Sequence[tuple[str, str]],
        has_byte_tokens: bool,
        strip: tuple[str, int] | None = None,
    ) -> TokenTable:
        """A tokenizer whose decoder is ``Replace*, ByteFallback?, Fuse?, Strip?`` in sequence.

        Args:
            tokens: the string of each id, None where there is none.
            special_tokens: strings of special tokens.
            replacements: (pattern, content) of each ``Replace``.
            has_byte_tokens: whether ``<0xNN>`` is a byte.
            strip: (character, how many at most) that the start of a text loses.
        """

    @staticmethod
    def metaspace(
        tokens: Sequence[str | None],
        *,
        special_tokens: set[str],
        marker: str,
        first_loses_marker: bool,
    ) -> TokenTable:
        """A tokenizer whose decoder is ``Metaspace``.

        Args:
            tokens: the string of each id, None where there is none.
            special_tokens: strings of special tokens.
            marker: the character that stands for a space.
            first_loses_marker: whether the first token of a text loses its markers.
        """

    @property
    def num_bytes(self) -> int:
        """Heap memory of the table."""

    def __len__(self) -> int: ...
    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for an id that the tokenizer does not have."""

    def is_special(self, token_id: int) -> bool:
        """Whether ``skip_special_tokens`` leaves the token out."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The full decode of a text."""

@final
class TextDecoder:
    """The text of one sequence; as ``Scheduler.add_request(text=...)`` the template of several.

    Raises:
        ValueError: an empty stop string.
    """

    def __new__(
        cls,
        table: TokenTable,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str],
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
    ) -> TextDecoder:
        """An empty text after a prompt, decoded by a table."""

    @staticmethod
    def from_stream(
        stream: _TextStream, *, stop: Sequence[str], include_stop_str_in_output: bool
    ) -> TextDecoder:
        """An empty text whose pieces a Python object decodes.

        Args:
            stream: ``step(token_id)`` returns the text that became final, ``flush()`` the rest,
                ``fork()`` an independent copy.
            stop: strings that end the text.
            include_stop_str_in_output: whether the text keeps the stop string.
        """

    @staticmethod
    def constrained(grammar: Grammar, text: TextDecoder | None = None) -> TextDecoder:
        """A copy of an empty text under a grammar, from its start; without a text, the grammar alone."""

    @property
    def text(self) -> str:
        """The text that no later token can change. It only ever grows."""

    @property
    def error(self) -> BaseException | None:
        """The first exception of a stream in this text or a fork; its text ended there."""

    def push(self, token_id: int, *, may_stop: bool = True) -> int | None:
        """Appends one generated token.

        Args:
            token_id: the token; an id that the tokenizer does not have adds no text.
            may_stop: whether a stop string that is complete in this token's text ends the text.

        Returns:
            The index of the stop string that ended the text, or None.
        """

    def finish(self) -> None:
        """Releases what was held back: an incomplete character, the start of a stop string."""

    def fork(self) -> TextDecoder:
        """An independent copy."""

# --- grammars ---

@final
class Grammar:
    """What sequences may generate, compiled; made by `GrammarCompiler`."""

    @property
    def num_bytes(self) -> int:
        """Heap memory, about; it grows while sequences use the grammar."""

@final
class GrammarCompiler:
    """Compiles grammars over the tokens of one tokenizer; any number of threads may call it.

    A grammar is compiled on a thread of its own, within limits of size, nesting, fuel and time; the caller waits and other
    Python threads run. The methods raise ValueError: whatever is wrong with the grammar, nothing satisfies it, or its
    compilation takes too long.
    """

    def __new__(
        cls,
        table: TokenTable,
        *,
        vocab_size: int,
        compile_seconds: int = 10,
        num_compilations: int = 2,
    ) -> GrammarCompiler:
        """Builds the trie of the tokens.

        Args:
            table: the bytes of the tokens; special ones, and those without text, are never allowed.
            vocab_size: columns of the logits; ids from there on are left out.
            compile_seconds: time for one grammar.
            num_compilations: grammars compiled at a time; others wait for their turn.

        Raises:
            ValueError: a vocabulary that no trie can hold.
        """

    def json_schema(
        self,
        schema: str,
        *,
        any_whitespace: bool = True,
        whitespace_pattern: str | None = None,
        additional_properties: bool = True,
    ) -> Grammar:
        """Compiles the JSON that satisfies a schema.

        Args:
            schema: JSON text.
            any_whitespace: whether white space may stand between tokens.
            whitespace_pattern: what may stand there instead, a regular expression.
            additional_properties: whether objects may have properties that their schema does not name, where it does not
                say.
        """

    def regex(self, pattern: str) -> Grammar:
        """Compiles the texts that a regular expression matches as a whole."""

    def choice(self, choices: Sequence[str]) -> Grammar:
        """Compiles a list of texts."""

    def grammar(self, grammar: str) -> Grammar:
        """Compiles a grammar in the notation of Lark or, where rules have "::=", of GBNF."""

    def structural_tag(
        self,
        tag: str,
        *,
        any_whitespace: bool = True,
        whitespace_pattern: str | None = None,
        additional_properties: bool = True,
    ) -> Grammar:
        """Compiles text of any form between parts that have one.

        Args:
            tag: JSON text: structures and triggers, or a format.
            any_whitespace: as for the schemas of `json_schema`, and so are the others.
            whitespace_pattern: the same.
            additional_properties: the same.
        """

def fill_masks(
    scheduler: Scheduler,
    batch: Batch,
    *,
    words: npt.NDArray[np.uint32],
    is_constrained: npt.NDArray[np.bool_],
) -> list[tuple[int, str]]:
    """Writes what grammars allow the samples of the oldest batch in flight.

    Where a text may end, its request's ending ids are allowed too.

    Args:
        scheduler: whose sequences they are.
        batch: the batch.
        words: [S, W] written for constrained samples: bit b of word w is token 32 w + b.
        is_constrained: [S] written: whether the mask counts.

    Returns:
        (sample, message) for each sequence that cannot go on; its mask does not count, and its request is to be aborted.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or a batch of another scheduler.
        RuntimeError: the batch is not the oldest in flight.
    """

def apply_masks(
    logits: npt.NDArray[np.float32],
    *,
    rows: npt.NDArray[np.int64],
    masks: npt.NDArray[np.uint32],
) -> None:
    """Sets the logits of excluded tokens to minus infinity.

    Args:
        logits: [P, V], written.
        rows: [A] rows of ``logits``.
        masks: [A, ceil(V / 32)]: bit b of word w is token 32 w + b; clear excludes it.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit, or a row out of bounds; nothing is written.
    """

# --- cpu ---

_Stored: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int16]
"""An array that shares a tensor's memory; 16-bit formats travel as int16 (``tensor.view(torch.int16).numpy()``)."""
_DType: TypeAlias = Literal["float32", "bfloat16", "float16"]

def num_threads() -> int:
    """How many threads one kernel call may use, the calling one included: one per physical core unless set."""

def set_num_threads(num_threads: int) -> None:
    """Sets how many threads one kernel call may use. Results do not depend on it; idle threads sleep.

    Raises:
        ValueError: fewer than 1.
    """

def cpu_isa() -> str:
    """The instruction set that kernels use: ``avx512``, ``avx2``, ``neon``, ``fused`` or ``plain``.

    The best one of the CPU, unless the environment variable ``PAGEDKV_CPU_ISA`` names another. All but ``plain`` (the one
    for a CPU without AVX2 or NEON) give the same bits; ``fused`` is their slow scalar twin.

    Raises:
        ValueError: the variable names none of this CPU.
    """

def set_cpu_isa(name: str) -> None:
    """Makes kernels use another instruction set from here on, in all threads.

    Raises:
        ValueError: unknown, or not on this CPU.
    """

def kv_write(
    key: _Stored,
    value: _Stored,
    *,
    keys: _Stored,
    values: _Stored,
    slot_mapping: npt.NDArray[np.int64],
    dtype: _DType,
) -> None:
    """Stores keys and values of tokens in the slots of their blocks.

    Args:
        key: [T, Hkv, Dk], strided; rows contiguous.
        value: [T, Hkv, Dv], likewise.
        keys: [num_blocks, Hkv, block_size, Dk], strided, written.
        values: [num_blocks, Hkv, block_size, Dv], likewise.
        slot_mapping: [S], S <= T: ``block * block_size + offset`` of each token; -1 stores nothing.
        dtype: Format of all four.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit, a slot outside the storage, rows that are not contiguous.
        RuntimeError: another call is using an array that this one would write.
    """

def copy_blocks(
    storages: Sequence[_Stored], *, pairs: npt.NDArray[np.int32], dtype: _DType
) -> None:
    """Copies whole blocks in each storage.

    Args:
        storages: Each [num_blocks, Hkv, block_size, D], strided, written.
        pairs: [C, 2]: block, and the block that it is copied over. Copied in order.
        dtype: Format of the storages.

    Raises:
        TypeError: an array of another dtype.
        ValueError: a block outside 1 .. num_blocks - 1.
        RuntimeError: another call is using a storage.
    """

def paged_attention(
    query: _Stored,
    output: _Stored,
    *,
    keys: _Stored,
    values: _Stored,
    dtype: _DType,
    row_ids: npt.NDArray[np.int32],
    query_start_loc: npt.NDArray[np.int32],
    seq_lens: npt.NDArray[np.int32],
    block_tables: npt.NDArray[np.int32],
    scale: float,
    mask: Literal["full", "sliding", "chunked"] = "full",
    window: int | None = None,
    softcap: float | None = None,
    sinks: npt.NDArray[np.float32] | None = None,
    alibi_slopes: npt.NDArray[np.float32] | None = None,
) -> None:
    """Attention of the queries of a step over the keys and values in its blocks.

    Query i of row r stands at position ``seq_lens[r] - query_len[r] + i`` and attends its row's keys up to there, as the
    mask allows. Slots outside the mask are never read. A query's result does not depend, in any bit, on the rest of the
    batch, on chunks, on the block size or on threads. Blocks that rows of few queries start with in common are read once.

    Args:
        query: [T, H, Dk], strided; rows contiguous.
        output: [T, H, Dv], written; zero for tokens beyond the last of ``query_start_loc`` and for rows of length 0.
        keys: [num_blocks, Hkv, block_size, Dk], strided.
        values: [num_blocks, Hkv, block_size, Dv], strided.
        dtype: Format of those four; scores, softmax and sums are float32.
        row_ids: [R] rows of ``block_tables``.
        query_start_loc: [R + 1] prefix sums of query tokens.
        seq_lens: [R] context lengths after this step.
        block_tables: [B, M]; entries whose keys are read must be blocks, others are not looked at.
        scale: Factor of the scores.
        mask: Which keys a query attends; see ``LayerSpec``.
        window: Width of a sliding window or chunk.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        sinks: [H] one more score per head, without a value.
        alibi_slopes: [H] factor of (key position - query position), added to the capped scores.

    Raises:
        TypeError: an array of another dtype.
        ValueError: sizes that do not fit, or a row, length or table entry out of bounds; nothing is written.
        RuntimeError: another call is writing one of the arrays.
    """

def linear(
    numbers: _Stored, weight: _Stored, bias: _Stored | None, output: _Stored, *, dtype: _DType
) -> None:
    """``numbers`` times the transpose of ``weight``, plus ``bias``; a row's bits do not depend on the other rows.

    Args:
        numbers: [..., inputs], rows contiguous and in equal steps.
        weight: [outputs / 16 rounded up, inputs * 16], rows contiguous: of each input the weights of sixteen outputs.
        bias: [outputs], or None.
        output: [..., outputs], written.
        dtype: Format of all; summed in float32.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit; nothing is written.
        RuntimeError: another call is writing one of the arrays.
    """

def rms_norm(
    numbers: _Stored,
    weight: _Stored,
    output: _Stored,
    *,
    epsilon: float,
    weight_offset: float,
    rounds_twice: bool,
    dtype: _DType,
) -> None:
    """Each row divided by its root mean square, times a weight (arXiv 1910.07467).

    Args:
        numbers: [..., columns], rows contiguous and in equal steps.
        weight: [columns].
        output: [..., columns], written.
        epsilon: Added to the mean of the squares.
        weight_offset: Added to every weight.
        rounds_twice: Round to ``dtype`` before the weight is applied, as well as after.
        dtype: Format of all; computed in float32.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit; nothing is written.
        RuntimeError: another call is writing one of the arrays.
    """

def rotate(
    heads: _Stored,
    cos: _Stored,
    sin: _Stored,
    output: _Stored,
    *,
    dtype: _DType,
) -> None:
    """Rotary position embedding (arXiv 2104.09864), number i of a head together with number i + D / 2.

    Each product and the sum are rounded to ``dtype``, as when torch computes one after the other.

    Args:
        heads: [T, H, D], rows contiguous, D even.
        cos: [T, D].
        sin: [T, D].
        output: [T, H, D], written.
        dtype: Format of all.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit; nothing is written.
        RuntimeError: another call is writing one of the arrays.
    """

def silu(numbers: _Stored, output: _Stored, *, dtype: _DType) -> None:
    """``x / (1 + e^-x)`` of each number, whatever the number of rows.

    Args:
        numbers: [..., columns], rows contiguous and in equal steps.
        output: The same shape, written.
        dtype: Format of both; computed in float32.
    """

def gelu(numbers: _Stored, output: _Stored, *, dtype: _DType) -> None:
    """``x * (1 + erf(x / sqrt 2)) / 2`` of each number; arguments as for `silu`."""

def gelu_tanh(numbers: _Stored, output: _Stored, *, dtype: _DType) -> None:
    """Gelu in the form with a hyperbolic tangent; arguments as for `silu`."""

def gumbel_noise(
    output: npt.NDArray[np.float32],
    *,
    seeds: npt.NDArray[np.uint64],
    sample_index: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
) -> None:
    """Fills rows with the Gumbel noise of every token; `pagedkv.sampling.philox` defines it and is the readable twin.

    Equal to the twin but for the last bit of a few of the 2^24 values there are.

    Args:
        output: [S, V], written: row s, column t is the noise of token t.
        seeds: [S] seed of each row's request.
        sample_index: [S] index of its sequence within the request.
        positions: [S] output position, 0 for the first generated token.
    """

NO_TOKEN: int
"""What `sample_tokens` writes for a row that no token is left for."""

def sample_tokens(
    logits: npt.NDArray[np.float32],
    edited: npt.NDArray[np.float32] | None,
    *,
    token_ids: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.float32],
    ranks: npt.NDArray[np.int32],
    edited_rows: npt.NDArray[np.int32],
    seeds: npt.NDArray[np.uint64],
    sample_index: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    temperature: npt.NDArray[np.float32],
    log_min_p: npt.NDArray[np.float32],
    top_k: npt.NDArray[np.int32],
    top_p: npt.NDArray[np.float32],
    num_top: npt.NDArray[np.int32],
    reported: str,
) -> None:
    """Chooses a token for each row of logits, by selection and without sorting.

    Temperature, min_p, top_k, top_p, then the argmax of scaled logit + Gumbel noise over what is kept; a filter keeps
    every token at or above a value, ties included; of equals the lower id is chosen. A row's bits depend on the row alone.
    The readable twin is `pagedkv.sampling.torch_choice`.

    Args:
        logits: [S, V], rows contiguous.
        edited: [P, V], what rows that name one of these are drawn from instead.
        token_ids: [S, 1 + N], written: the chosen token or `NO_TOKEN`, then the most likely ones, best first.
        numbers: [S, 1 + N], written: what is reported of them; NaN if a logit of the model was, -inf where a row reports
            fewer.
        ranks: [S, 1], written: rank of the chosen token; 0 where nothing is reported.
        edited_rows: [S], a row of ``edited`` or -1.
        seeds: [S] seed of each row's request.
        sample_index: [S] index of its sequence within the request.
        positions: [S] output position, 0 for the first generated token.
        temperature: [S]; 0 takes the most likely token.
        log_min_p: [S] logarithm of the least probability relative to the largest; -inf keeps all.
        top_k: [S]; 0 keeps all.
        top_p: [S]; 1 keeps all.
        num_top: [S], how many of the most likely tokens to report, at most N; -1 for no report.
        reported: "raw_logprobs", "raw_logits", "processed_logprobs" or "processed_logits".

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit; nothing is written.
        RuntimeError: another call is writing one of the arrays.
    """

def best_tokens(
    numbers: npt.NDArray[np.float32],
    *,
    as_logprobs: bool,
    token_ids: npt.NDArray[np.int32],
    values: npt.NDArray[np.float32],
) -> None:
    """Writes the largest numbers of each row and where they are, best first, of equals the first ones.

    Args:
        numbers: [S, V], rows contiguous, without NaN.
        as_logprobs: The numbers are logits, and the values their log-probabilities: NaN in a row that holds a NaN, plus
            infinity or nothing finite.
        token_ids: [S, C], written.
        values: [S, C], written.
    """

# --- scheduler ---
#
# Sizes in symbols: B = max_num_seqs, T = max_num_batched_tokens, G = KV groups, M = blocks per row,
# U = num_table_updates, C = num_block_copies of `Scheduler.sizes`; R rows, S samples of a batch.

_FinishReason: TypeAlias = Literal["stop", "length", "repetition", "abort"]

@final
class StepBuffers:
    """The arrays of a step: registered once, filled by every `Scheduler.schedule`.

    All are C-contiguous, writeable, aligned and share no memory. int32 but for ``slot_mapping`` and
    ``row_fills``, which are int64. Their first dimension may be longer than needed, the rows of
    ``slot_mapping`` as well; ``block_tables`` fits exactly. The shapes are checked by ``schedule``,
    and so is everything else again, since Python can change an array in place.

    Attributes of a batch beyond its counts (unused tails) are undefined.

    Raises:
        TypeError: no array, or another dtype.
        ValueError: an array that is not C-contiguous or aligned, or shares memory with another.
        RuntimeError: an array that is read-only, or borrowed by a running call.
    """

    def __new__(
        cls,
        *,
        row_ids: npt.NDArray[np.int32],
        query_start_loc: npt.NDArray[np.int32],
        seq_lens: npt.NDArray[np.int32],
        input_ids: npt.NDArray[np.int32],
        input_source: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        block_tables: npt.NDArray[np.int32],
        table_updates: npt.NDArray[np.int32],
        row_forks: npt.NDArray[np.int32],
        logits_indices: npt.NDArray[np.int32],
        sample_rows: npt.NDArray[np.int32],
        sample_index: npt.NDArray[np.int32],
        sample_positions: npt.NDArray[np.int32],
        num_candidates: npt.NDArray[np.int32],
        block_copies: npt.NDArray[np.int32],
        swap_out: npt.NDArray[np.int32],
        swap_in: npt.NDArray[np.int32],
        slot_mapping: npt.NDArray[np.int64],
        row_fills: npt.NDArray[np.int64],
    ) -> StepBuffers:
        """Registers the arrays.

        Args:
            row_ids: [B] stable row (below B) of each scheduled sequence.
            query_start_loc: [B + 1] prefix sums of tokens per scheduled row.
            seq_lens: [B] context length after this step, per scheduled row.
            input_ids: [T] tokens to run; -1 = not sampled yet.
            input_source: [T] where ``input_ids`` is -1: which sample of the previous batch it is.
            positions: [T] position of each token in its sequence.
            block_tables: [G, B, M] persistent, indexed by row id; 0 = null block. Buffers that take
                turns should share this array; otherwise it is written whole at every change of buffers.
            table_updates: [U, 4] (group, row, column, block): what changed in ``block_tables``.
            row_forks: [2 B, 2] (parent row, child row): the first ``Batch.num_first_forks`` are applied
                before the updates, the others after them.
            logits_indices: [B] positions in T that are sampled; may repeat.
            sample_rows: [B] row that a sample is for.
            sample_index: [B] index of that sequence within its request.
            sample_positions: [B] tokens that it generated before this one.
            num_candidates: [B] candidates wanted.
            block_copies: [C, 3] (group, from, to), made before the forward pass.
            swap_out: [W, 3] (group, from, to host), made before everything else.
            swap_in: [W, 3] (group, from host, to), made after that and before the copies.
            slot_mapping: [G, >= T] block * block_size + offset.
            row_fills: [2 B, 3] (row, request id, index): sequences that got a row since the last batch.
        """

@final
class BeamOptions:
    """Beam search instead of sampling: the ``beams`` of `Scheduler.add_request`; ``n`` is the width.

    The rules are those of transformers' ``generate(num_beams=n)``.
    """

    def __new__(
        cls,
        *,
        num_returned: int,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        track_rows: bool = False,
        num_logprobs: int | None = None,
    ) -> BeamOptions:
        """The options of a search.

        Args:
            num_returned: sequences to return, the best first.
            length_penalty: exponent of the number of tokens that a score is divided by.
            early_stopping: True ends the search with ``n`` ended sequences, False when the best beam
                could not do better by ending now, "never" when it could not do better at all.
            track_rows: reports rows as filled whenever they continue another beam.
            num_logprobs: likely tokens to report per position; None reports nothing.

        Raises:
            ValueError: a value out of range.
        """

@final
class Batch:
    """A batch in flight: how much of each step array is in use. Made by `Scheduler.schedule`."""

    @property
    def id(self) -> int:
        """Number of this batch, from 1."""

    @property
    def num_rows(self) -> int:
        """R, scheduled sequences."""

    @property
    def num_tokens(self) -> int:
        """Tokens to run."""

    @property
    def num_samples(self) -> int:
        """S, tokens to sample."""

    @property
    def num_table_updates(self) -> int:
        """Changed entries of the block tables."""

    @property
    def num_row_forks(self) -> int:
        """Rows filled by sharing another's blocks."""

    @property
    def num_first_forks(self) -> int:
        """How many of the row forks come before the table updates; the others come after them."""

    @property
    def num_candidates(self) -> int:
        """C, the most candidates that a sample wants; 1 without beams."""

    @property
    def num_block_copies(self) -> int:
        """Blocks to copy before the forward pass."""

    @property
    def num_swap_out(self) -> int:
        """Blocks to move to the host, before everything else."""

    @property
    def num_swap_in(self) -> int:
        """Blocks to move back from the host, after that and before the block copies."""

    @property
    def num_row_fills(self) -> int:
        """Sequences that got a row."""

    @property
    def num_constrained(self) -> int:
        """Samples that a grammar constrains; `fill_masks` has something to do if there are any."""

@final
class StepOutput:
    """What a step led to. Made by `Scheduler.update`."""

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """[S] False where a token was discarded: its sequence had ended meanwhile."""

    @property
    def first_tokens(self) -> list[int]:
        """Ids of requests that got their first token."""

    @property
    def deltas(self) -> list[tuple[int, int, str, list[int], _FinishReason | None]]:
        """(request id, index, text, token ids, finish reason) of requests added with ``stream=True``.

        The text is what became final with these tokens; it may be empty or belong to earlier ones.
        """

    @property
    def finished(self) -> list[int]:
        """Ids of requests whose sequences have all ended; `Scheduler.take_output` has the rest."""

@final
class SequenceResult:
    """What one sequence of a request generated."""

    @property
    def index(self) -> int:
        """Index within the request."""

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """[num_tokens] the generated tokens, an ending id included."""

    @property
    def text(self) -> str:
        """The generated text; empty without a decoder."""

    @property
    def cumulative_logprob(self) -> float:
        """Sum of the tokens' log-probabilities."""

    @property
    def score(self) -> float | None:
        """Of beams: the sum, divided by the number of tokens to the power of the length penalty."""

    @property
    def logprobs(self) -> list[tuple[float, int, list[tuple[int, float]]]] | None:
        """Of beams, if asked for: (log-probability, rank, most likely tokens) of each token."""

    @property
    def finish_reason(self) -> _FinishReason:
        """Why it ended."""

    @property
    def stop_reason(self) -> int | str | None:
        """The request's stop token id or stop string that ended it, "repetition_detected", or None."""

@final
class RequestResult:
    """What a request generated."""

    @property
    def sequences(self) -> tuple[SequenceResult, ...]:
        """Its sequences, by index."""

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache when it first ran."""

    @property
    def num_preemptions(self) -> int:
        """How often it gave up its blocks."""

    @property
    def num_swaps(self) -> int:
        """Of those, how often they were moved to the host."""

    @property
    def num_tokens_lost(self) -> int:
        """Tokens whose computation was lost because it gave up its blocks."""

    @property
    def num_held_slots(self) -> int:
        """Slots of its distinct blocks, over all KV groups, when the first of its sequences ended."""

    @property
    def num_used_slots(self) -> int:
        """Of those, slots that held tokens."""

@final
class PrefixMatch:
    """How much of a prompt is cached, and where it leaves what is cached."""

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that a request with this prompt would not compute; its last one always runs."""

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that it would share whole."""

    @property
    def missing_block(self) -> int | None:
        """Index of the first block that is not cached; None if all of the prompt's tokens are."""

    @property
    def miss(self) -> Literal["off", "unknown", "end", "differs", "evicted"] | None:
        """Why it is not: no caching, nothing under the key, nothing after the blocks before it, other tokens, or lost."""

    @property
    def cached_token_ids(self) -> list[int]:
        """The tokens of the block that is cached in its place and starts most like it; empty if there is none."""

    @property
    def num_equal(self) -> int:
        """How many leading tokens of the two are the same."""

@final
class Scheduler:
    """Continuous batching over a paged KV cache: which sequences run which tokens in each step.

    A step is `schedule`, the caller's forward pass, `update`. Same calls, same results: no clock, no
    randomness, no threads. Calls do not wait for each other: one that comes while another runs (from
    another thread, or from a text decoder in Python) raises RuntimeError, and so does every call after
    an internal failure.
    """

    def __new__(
        cls,
        *,
        num_blocks: int,
        block_size: int,
        kv_groups: Sequence[tuple[str, int]],
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_num_waiting: int = ...,
        policy: str = "fcfs",
        enable_prefix_caching: bool = True,
        max_in_flight: int = 1,
        hash_key: int = 0,
        num_swap_blocks: int = 0,
        swap_cost: float = 1.0,
    ) -> Scheduler:
        """An idle scheduler.

        Args:
            num_blocks: blocks in the pool, the null block included; at least 2.
            block_size: tokens per block, a power of two.
            kv_groups: ``("full", 0)``, ``("sliding", window)`` or ``("chunked", size)`` per KV group.
            max_num_seqs: sequences that hold rows at once.
            max_num_batched_tokens: tokens that one step may run; at least ``max_num_seqs``.
            max_model_len: the longest sequence, in tokens; at least 2.
            max_num_waiting: requests that may wait.
            policy: ``"fcfs"``, or ``"priority"``: lower ``priority`` first, then first come.
            enable_prefix_caching: whether full blocks can be found again by their content.
            max_in_flight: batches scheduled before the first of them is updated: 1 or 2.
            hash_key: key of the content hash, 64 bits; tenants cannot predict collisions without it.
            num_swap_blocks: blocks of the host that preempted requests can be moved to.
            swap_cost: what moving a block there and back costs, in tokens computed again.

        Raises:
            TypeError: a setting of another type.
            ValueError: a setting out of range; the message names it, its value and the bound.
            MemoryError: the books for so many blocks or rows do not fit in memory.
        """

    @property
    def sizes(self) -> dict[str, int]:
        """The lengths that the step arrays must have.

        ``num_rows`` (B), ``num_tokens`` (T), ``num_groups`` (G), ``blocks_per_row`` (M),
        ``num_table_updates`` (U), ``num_block_copies`` (C), ``num_swap_blocks`` (W).
        """

    @property
    def num_running(self) -> int:
        """Requests that run."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait, preempted ones included."""

    @property
    def has_unfinished(self) -> bool:
        """Whether any request has not ended."""

    def add_request(
        self,
        request_id: int,
        prompt_token_ids: Sequence[int] | npt.NDArray[np.integer],
        *,
        n: int = 1,
        max_tokens: int,
        min_tokens: int = 0,
        eos_token_ids: Sequence[int] | npt.NDArray[np.integer] | None = None,
        stop_token_ids: Sequence[int] | npt.NDArray[np.integer] | None = None,
        ignore_eos: bool = False,
        include_stop_in_text: bool = False,
        priority: int = 0,
        cache_salt: str | bytes | None = None,
        adapter_id: int = 0,
        text: TextDecoder | None = None,
        stop_strings: Sequence[str] | None = None,
        stream: bool = False,
        beams: BeamOptions | None = None,
        repetition: tuple[int, int, int] | None = None,
    ) -> None:
        """Queues a request. It starts when its turn comes and there is room.

        Args:
            request_id: from 0 to 2**63 - 1, unique among live requests.
            prompt_token_ids: [num_tokens] at least one id from 0 to 2**31 - 1; an int32 array is read
                without a loop in Python.
            n: sequences to generate; the prompt is computed once.
            max_tokens: tokens to generate at most, per sequence; ``max_model_len`` cuts it.
            min_tokens: tokens to generate before an ending id, stop string or repetition counts.
            eos_token_ids: the model's ending ids.
            stop_token_ids: the request's own ending ids.
            ignore_eos: whether ``eos_token_ids`` are ordinary tokens.
            include_stop_in_text: whether an ending id adds to the text.
            priority: lower is sooner, under ``policy="priority"``.
            cache_salt: cached content is shared under an equal salt only.
            adapter_id: and under an equal adapter.
            text: the template of its sequences' texts; it is copied.
            stop_strings: those of ``text``, for `SequenceResult.stop_reason`.
            stream: whether `update` reports each token; beams are reported when they have ended.
            beams: beam search of width ``n`` instead of sampling.
            repetition: (shortest pattern, longest pattern, copies): ends a sequence whose last tokens are so many
                copies of one pattern; longest x copies is at most 65536.

        Raises:
            TypeError: an argument of another type; token ids are named by their position.
            ValueError: an argument out of range, or a ``request_id`` in use.
            pagedkv.errors.RequestTooLongError: it could not run even alone.
            pagedkv.errors.QueueFullError: ``max_num_waiting`` requests wait.
        """

    def schedule(self, buffers: StepBuffers) -> Batch | None:
        """Plans the next step and fills the arrays; None if nothing can run.

        Raises:
            ValueError: an array does not fit `sizes`, or was changed so that it no longer qualifies.
            RuntimeError: ``max_in_flight`` batches are in flight, or another call uses an array.
        """

    def update(
        self, batch: Batch, token_ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]
    ) -> StepOutput:
        """Takes the tokens sampled for the oldest batch in flight. This alone decides what ends.

        Args:
            batch: the batch.
            token_ids: [S, C] ids, 0 or more, the most likely first; or [S] where C is 1.
            logprobs: [S, C] or [S] their log-probabilities; minus infinity where there are no more.

        Raises:
            TypeError: another dtype.
            ValueError: another shape, a negative id, or a batch of another scheduler.
            RuntimeError: the batch is not the oldest in flight.
        """

    def requeue(self, batch: Batch) -> list[int]:
        """Takes back the newest batch in flight, whose forward pass failed or was interrupted.

        Nothing of it counts; its requests wait, in their old place, to be computed again.

        Returns:
            Their ids.

        Raises:
            ValueError: a batch of another scheduler.
            RuntimeError: the batch is not the newest in flight.
        """

    def abort(self, request_id: int) -> RequestResult | None:
        """Ends a request in whatever state it is and removes it.

        Returns:
            What it generated so far; None if the id is unknown, so that a second abort is harmless.
        """

    def take_output(self, request_id: int) -> RequestResult:
        """Removes a request that has ended.

        Raises:
            pagedkv.errors.UnknownRequestError: no live request has this id.
            RuntimeError: it has not ended.
        """

    def output_token_ids(self, request_id: int, index: int) -> npt.NDArray[np.int32]:
        """[num_tokens] what a sequence of a live request has generated so far.

        Raises:
            pagedkv.errors.UnknownRequestError: no live request has this id.
            ValueError: the request has no sequence ``index``.
        """

    def stats(self) -> dict[str, int | float]:
        """Counters since the start, the state of the pool, means over steps; O(1)."""

    def explain_prefix(
        self,
        prompt_token_ids: Sequence[int] | npt.NDArray[np.integer],
        *,
        cache_salt: str | bytes | None = None,
        adapter_id: int = 0,
    ) -> PrefixMatch:
        """How much of a prompt is cached, and where it leaves what is cached; O(blocks). Changes nothing.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of range.
        """

    def check_invariants(self) -> None:
        """Checks requests, rows, blocks and cache against each other; O(everything).

        Raises:
            AssertionError: the first statement found to be false: a bug of pagedkv.
        """

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached content; False, and nothing done, while a request runs."""

@final
class SequenceHandle:
    """A sequence of a `KvCacheManager`; good for that manager, until it is freed."""

    @property
    def num_cached_tokens(self) -> int:
        """Leading tokens whose keys and values were there when the sequence started.

        From the prefix cache for `KvCacheManager.allocate`, all for `KvCacheManager.fork`. The others
        are to be written.
        """

@final
class KvCacheManager:
    """The block allocator on its own: for tests, and for people with a loop of their own.

    Each call is a step of its own that has run when the call returns: blocks that it gave up are free,
    full blocks that it took can be found by their content. So write keys and values, and make the
    copies of `take_copies`, before the next call. A full pool is an outcome (None or False), never an
    exception. Threads as in `Scheduler`.
    """

    def __new__(
        cls,
        *,
        num_blocks: int,
        block_size: int,
        kv_groups: Sequence[tuple[str, int]],
        max_num_seqs: int,
        max_model_len: int,
        enable_prefix_caching: bool = True,
        hash_key: int = 0,
        hash_bits: int = 64,
    ) -> KvCacheManager:
        """An empty cache.

        Args:
            num_blocks: blocks in the pool, the null block included; at least 2.
            block_size: tokens per block, a power of two.
            kv_groups: as in `Scheduler`.
            max_num_seqs: sequences that exist at once.
            max_model_len: the longest sequence, in tokens.
            enable_prefix_caching: whether full blocks can be found again by their content.
            hash_key: key of the content hash.
            hash_bits: bits of it that are kept; fewer than 64 force collisions, for tests.

        Raises:
            TypeError: a setting of another type.
            ValueError: a setting out of range.
            MemoryError: the books for so many blocks do not fit in memory.
        """

    def allocate(
        self,
        token_ids: Sequence[int] | npt.NDArray[np.integer],
        *,
        cache_salt: str | bytes | None = None,
        adapter_id: int = 0,
    ) -> SequenceHandle | None:
        """Starts a sequence: what the prefix cache has of it is shared, the rest gets fresh blocks.

        Returns:
            Its handle; None, and nothing changed, without room.

        Raises:
            TypeError: no token ids.
            ValueError: an id out of range, no token, or more than ``max_model_len``.
        """

    def append(
        self, handle: SequenceHandle, token_ids: Sequence[int] | npt.NDArray[np.integer]
    ) -> bool:
        """Adds tokens; a shared last block is copied first, windows give back what they left.

        Returns:
            False, and nothing added, without room.

        Raises:
            TypeError: no token ids.
            ValueError: a stale or foreign handle, an id out of range, or more than ``max_model_len``.
        """

    def fork(self, handle: SequenceHandle) -> SequenceHandle | None:
        """Starts a sequence that shares all blocks of another; allocates no block.

        Returns:
            Its handle; None if ``max_num_seqs`` sequences exist.

        Raises:
            ValueError: a stale or foreign handle.
        """

    def free(self, handle: SequenceHandle) -> None:
        """Gives up all blocks of a sequence; the handle is stale from then on.

        Raises:
            ValueError: a stale or foreign handle.
        """

    def match_prefix(
        self,
        token_ids: Sequence[int] | npt.NDArray[np.integer],
        *,
        cache_salt: str | bytes | None = None,
        adapter_id: int = 0,
    ) -> int:
        """How many leading tokens are cached; at most all but one."""

    def take_copies(self) -> npt.NDArray[np.int32]:
        """[C, 3] (group, from, to) of block copies due since the last call of this, in order."""

    def block_table(self, handle: SequenceHandle, group: int) -> npt.NDArray[np.int32]:
        """[num_blocks] the blocks of a sequence in a group; 0 where a window gave one back.

        Raises:
            ValueError: a stale or foreign handle, or no such group.
        """

    def token_ids(self, handle: SequenceHandle) -> npt.NDArray[np.int32]:
        """[num_tokens] the tokens of a sequence.

        Raises:
            ValueError: a stale or foreign handle.
        """

    def ref_count(self, block: int) -> int:
        """How many table entries refer to a block.

        Raises:
            ValueError: no such block.
        """

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out, cached ones included."""

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by their content."""

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached content; False, and nothing done, while a sequence exists."""

    def check_invariants(self) -> None:
        """Checks tables, counts and cache against each other; O(blocks).

        Raises:
            AssertionError: the first statement found to be false: a bug of pagedkv.
        """

    def __len__(self) -> int: ...
