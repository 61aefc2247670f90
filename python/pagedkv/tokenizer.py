"""A model's tokenizer: loading it, ids from text, text from ids as they come."""

from __future__ import annotations

import functools
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedkv._core import TextDecoder
from pagedkv.errors import ModelLoadError
from pagedkv.text_stream import TextStream
from pagedkv.token_bytes import derive_token_table, has_clean_up

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pagedkv._core import TokenTable

logger = logging.getLogger(__name__)

_CLEAN_UP_REACH = 12
"""Characters at the end of a text that clean-up may still edit: twice its longest pattern."""

# What transformers reads a vocabulary with when it is not in tokenizer.json: import names and package names.
_SENTENCEPIECE_PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
_TIKTOKEN_PACKAGES = {"tiktoken": "tiktoken"}

_REMEDY = (
    "pass tokenizer= with a folder or hub name that has one, "
    "or skip_tokenizer_init=True to work with token ids"
)


def load_tokenizer(
    path_or_id: str | os.PathLike[str], *, trust_remote_code: bool = False
) -> Tokenizer:
    """Loads the tokenizer of a model.

    Args:
        path_or_id: a folder, or a name on the Hugging Face hub.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        ModelLoadError: there is no such folder or name, the hub cannot be reached, or what is
            there is not a tokenizer; the message says what to do.
    """
    name = str(path_or_id)
    path = Path(name).expanduser()
    is_local = path.exists() or name.startswith(("/", "./", "../", "~"))
    if is_local and not path.is_dir():
        found = "is a file, not a folder" if path.exists() else "does not exist"
        msg = f"tokenizer {name!r} {found}; pass the folder that holds tokenizer.json"
        raise ModelLoadError(msg)
    if is_local:
        _check_packages(path)

    from transformers import AutoTokenizer

    source = str(path) if is_local else name
    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(_explain(name, error, is_local=is_local)) from error
    if _is_blank(hf_tokenizer):
        # transformers makes an empty tokenizer of the model type when the files are absent.
        msg = f"{name!r} has no tokenizer files; {_REMEDY}"
        raise ModelLoadError(msg)
    return Tokenizer(hf_tokenizer)


class Tokenizer:
    """A transformers tokenizer and, if its tokens have fixed bytes, their table.

    Attributes:
        hf_tokenizer: the transformers tokenizer.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def __repr__(self) -> str:
        return f"Tokenizer({type(self.hf_tokenizer).__name__}, vocab_size={self.vocab_size})"

    @functools.cached_property
    def table(self) -> TokenTable | None:
        """The bytes of the tokens; None if the tokenizer decodes by itself."""
        return derive_token_table(self.hf_tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's logits may be more."""
        return len(self.hf_tokenizer)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's ending ids; the generation config may name more."""
        eos = self.hf_tokenizer.eos_token_id
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: any text that can be written as UTF-8.
            add_special_tokens: whether to add what the model expects around a text, such as a
                beginning-of-sequence token. A rendered chat has them already.

        Raises:
            ValueError: ``text`` holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            msg = (
                f"text must be valid Unicode, got the lone surrogate {text[error.start]!r} at "
                f"index {error.start}; replace it, for example with U+FFFD"
            )
            raise ValueError(msg) from None
        ids = self.hf_tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids, as transformers decodes them."""
        text: str = self.hf_tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens
        )
        return text

    def decode_token(self, token_id: int) -> str:
        """Returns one token's own text, its leading space included; for logprobs."""
        if self.table is None:
            return self.decode([token_id], skip_special_tokens=False)
        return (self.table.token_bytes(token_id) or b"").decode(errors="replace")

    def make_text_decoder(
        self,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TextDecoder:
        """Makes the text of a request's sequences, for ``Scheduler.add_request(text=...)``.

        Args:
            prompt_token_ids: the prompt; the text follows it, so a leading space stays.
            stop: strings that end the text. The one that is complete first counts, of several
                complete at the same character the longest.
            include_stop_str_in_output: whether the text keeps the stop string.
            skip_special_tokens: whether special tokens leave no text.
            spaces_between_special_tokens: handed to tokenizers without a Rust backend; for
                others transformers gives it no meaning.

        Raises:
            ValueError: an empty stop string.
        """
        stop = list(stop)
        if self.table is not None:
            return TextDecoder(
                self.table,
                prompt_token_ids,
                stop=stop,
                include_stop_str_in_output=include_stop_str_in_output,
                skip_special_tokens=skip_special_tokens,
            )
        options: dict[str, Any] = {"skip_special_tokens": skip_special_tokens}
        if not getattr(self.hf_tokenizer, "is_fast", False):
            options["spaces_between_special_tokens"] = spaces_between_special_tokens
        stream = TextStream(
            functools.partial(self.hf_tokenizer.decode, **options),
            prompt_token_ids,
            reach=_CLEAN_UP_REACH if has_clean_up(self.hf_tokenizer) else 0,
        )
        return TextDecoder.from_stream(
            stream, stop=stop, include_stop_str_in_output=include_stop_str_in_output
        )


def _check_packages(folder: Path) -> None:
    """Checks that a vocabulary outside tokenizer.json can be read; transformers itself names the wrong package.

    Raises:
        ModelLoadError: a package is missing.
    """
    if (folder / "tokenizer.json").is_file():
        return
    file = next(iter(sorted(folder.glob("*.model"))), None)
    if file is None:
        return
    # A line of base64 and a number, or a protocol buffer whose first byte is the number of a field.
    with file.open("rb") as opened:
        is_text = opened.read(1).isalnum()
    kind = "tiktoken" if is_text else "SentencePiece"
    packages = _TIKTOKEN_PACKAGES if is_text else _SENTENCEPIECE_PACKAGES
    if missing := [package for name, package in packages.items() if not _is_installed(name)]:
        msg = (
            f"the tokenizer of {str(folder)!r} is the {kind} file {file.name}, which cannot be read "
            f"without {' and '.join(missing)}; pip install {' '.join(missing)}, or pass "
            "tokenizer= with a folder that has tokenizer.json"
        )
        raise ModelLoadError(msg)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # A package around it is missing.
        return False


def _is_blank(hf_tokenizer: Any) -> bool:
    """Whether a tokenizer knows nothing but special tokens (and perhaps a marker of a space)."""
    added = getattr(hf_tokenizer, "added_tokens_decoder", {})
    special = {token_id for token_id, token in added.items() if token.special}
    special.update(hf_tokenizer.all_special_ids)
    return len(hf_tokenizer) - len(special) <= 1


def _explain(name: str, error: Exception, *, is_local: bool) -> str:
    """Says what is wrong with a tokenizer that transformers could not load, and what to do."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"the tokenizer of {name!r} is Python code that comes with the model; read it, then "
            "pass trust_remote_code=True to run it"
        )
    reason = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    if "`tiktoken` is required" in text:
        # What transformers says of a SentencePiece file too, when it cannot import sentencepiece.
        return (
            f"the tokenizer of {name!r} needs a package that is not installed; pip install "
            "sentencepiece protobuf (for a SentencePiece file) or tiktoken (for a tiktoken file)"
        )
    if isinstance(error, ImportError):
        return f"the tokenizer of {name!r} needs a package that is not installed ({reason})"
    if is_local:
        if "Couldn't instantiate the backend tokenizer" in text:
            return f"{name!r} has no tokenizer files that can be read; {_REMEDY}"
        return f"the tokenizer files in {name!r} cannot be read ({reason}); {_REMEDY}"
    return (
        f"the tokenizer of {name!r} cannot be fetched from the Hugging Face hub, nor is it in the "
        f"local cache ({reason}); check the name and the connection, or pass a local folder"
    )
