"""What one beam search asks for, in today's spelling of the classic API."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pagedkv.beam_checks import check_early_stopping, check_length_penalty
from pagedkv.errors import unknown_parameter
from pagedkv.sampling_checks import at_least_one, check_max_tokens, check_types
from pagedkv.sampling_lists import checked_allowed_ids
from pagedkv.sampling_params import SamplingParams, TokenIds
from pagedkv.structured_outputs import checked_structure

if TYPE_CHECKING:
    from typing_extensions import Self

OWNER = "BeamSearchParams"


@dataclass(kw_only=True)
class BeamSearchParams:
    """How beams are searched; see `LLM.beam_search`.

    Attributes:
        beam_width: how many beams are kept at each step, and returned, best first.
        max_tokens: tokens generated at most, per beam.
        ignore_eos: treats the model's ending ids as ordinary tokens.
        temperature: 0; a beam search takes no chances.
        length_penalty: as in `SamplingParams`.
        early_stopping: as in `SamplingParams`.
        include_stop_str_in_output: as in `SamplingParams`.
        structured_outputs: as in `SamplingParams`.
        skip_special_tokens: as in `SamplingParams`.
        allowed_token_ids: as in `SamplingParams`.
        logprobs: as in `SamplingParams`.

    Raises:
        UnknownParameterError: a keyword that does not exist.
        TypeError: a value of the wrong type.
        ValueError: a value out of range.
    """

    beam_width: int
    max_tokens: int | None
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    include_stop_str_in_output: bool = False
    structured_outputs: Any = None
    skip_special_tokens: bool = True
    allowed_token_ids: TokenIds = None
    logprobs: int | None = None

    if not TYPE_CHECKING:

        def __new__(cls, **given: Any) -> Self:
            """Looks at the names first, so that a wrong one is answered with the nearest right one."""
            known = [entry.name for entry in fields(cls)]
            for name in given:
                if name not in known:
                    raise unknown_parameter(OWNER, name, known)
            return super().__new__(cls)

    def __post_init__(self) -> None:
        """Checks the values."""
        self.verify()

    def verify(self) -> None:
        """Checks every field, and brings each into its one shape.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value out of range.
        """
        check_types(vars(self))
        at_least_one("beam_width", self.beam_width)
        check_max_tokens(self.max_tokens)
        if self.temperature != 0.0:
            msg = "temperature must be 0 when using beam search."
            raise ValueError(msg)
        check_early_stopping(self.early_stopping)
        check_length_penalty(self.length_penalty)
        self.allowed_token_ids = checked_allowed_ids(self.allowed_token_ids)
        self.structured_outputs = checked_structure(self.structured_outputs)

    def sampling_params(self) -> SamplingParams:
        """The same as `SamplingParams`; one beam is the most likely token each time."""
        is_search = self.beam_width > 1
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=is_search,
            temperature=0.0,
            length_penalty=self.length_penalty if is_search else 1.0,
            early_stopping=self.early_stopping if is_search else False,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
            structured_outputs=self.structured_outputs,
            skip_special_tokens=self.skip_special_tokens,
            allowed_token_ids=self.allowed_token_ids,
            logprobs=self.logprobs,
        )
