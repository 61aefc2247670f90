"""pagedkv: LLM inference with a paged KV cache.

    from pagedkv import LLM, SamplingParams

    llm = LLM("demo")
    outputs = llm.generate(["Once upon a time"], SamplingParams(max_tokens=40))

Names are imported when they are first used, so that ``import pagedkv`` costs milliseconds and
needs neither a GPU nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedkv.beam_search import BeamSearchOutput, BeamSearchSequence
    from pagedkv.beam_search_params import BeamSearchParams
    from pagedkv.config import EngineConfig
    from pagedkv.engine import LLMEngine
    from pagedkv.errors import (
        EngineClosedError,
        ModelLoadError,
        PagedKVError,
        UnsupportedModelError,
    )
    from pagedkv.llm import LLM
    from pagedkv.logprobs import FlatLogprobs, Logprob
    from pagedkv.outputs import (
        CompletionOutput,
        RequestMetrics,
        RequestOutput,
        StreamDelta,
    )
    from pagedkv.prefix_report import PrefixReport
    from pagedkv.reasoning_config import ReasoningConfig
    from pagedkv.repetition_detection import RepetitionDetectionParams
    from pagedkv.sampling_params import RequestOutputKind, SamplingParams
    from pagedkv.structured_outputs import GuidedDecodingParams, StructuredOutputsParams

    __version__: str

_HOME = {
    "BeamSearchOutput": "beam_search",
    "BeamSearchParams": "beam_search_params",
    "BeamSearchSequence": "beam_search",
    "CompletionOutput": "outputs",
    "EngineClosedError": "errors",
    "EngineConfig": "config",
    "FlatLogprobs": "logprobs",
    "GuidedDecodingParams": "structured_outputs",
    "LLM": "llm",
    "LLMEngine": "engine",
    "Logprob": "logprobs",
    "ModelLoadError": "errors",
    "PagedKVError": "errors",
    "PrefixReport": "prefix_report",
    "ReasoningConfig": "reasoning_config",
    "RepetitionDetectionParams": "repetition_detection",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "StreamDelta": "outputs",
    "StructuredOutputsParams": "structured_outputs",
    "UnsupportedModelError": "errors",
}

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EngineClosedError",
    "EngineConfig",
    "FlatLogprobs",
    "GuidedDecodingParams",
    "LLMEngine",
    "Logprob",
    "ModelLoadError",
    "PagedKVError",
    "PrefixReport",
    "ReasoningConfig",
    "RepetitionDetectionParams",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StreamDelta",
    "StructuredOutputsParams",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("pagedkv._core").VERSION
    if name not in _HOME:
        msg = f"module 'pagedkv' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"pagedkv.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
