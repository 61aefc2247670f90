"""`pagedkv chat MODEL`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagedkv.chat import render_chat
from pagedkv.cli.options import sampling_params
from pagedkv.cli.session import open_llm, print_stream, print_summary

if TYPE_CHECKING:
    import argparse

    from pagedkv.llm import LLM
    from pagedkv.outputs import RequestOutput
    from pagedkv.sampling_params import SamplingParams


def run(options: argparse.Namespace) -> int:
    """Talks until an empty line or the end of input; returns the exit status."""
    if options.model is None and not options.demo:
        msg = "no model given; name a folder or a hub id, or use --demo for the bundled model"
        raise ValueError(msg)
    # A mistake in a flag is said before the model is loaded.
    if (n := sampling_params(options, {}).n) != 1:
        msg = f"chat shows one answer, so --n must be 1, got {n}"
        raise ValueError(msg)
    with open_llm(options, "demo" if options.demo else options.model) as llm:
        params = sampling_params(options, llm.llm_engine.parts.generation_defaults.fields)
        outputs = _talk(llm, params, system=options.system)
        if not options.quiet:
            print_summary(llm.stats(), outputs)
    return 0


def _talk(llm: LLM, params: SamplingParams, *, system: str | None) -> list[RequestOutput]:
    """Each turn sends the whole conversation; the prefix cache still holds the blocks of the earlier turns."""
    messages = [{"role": "system", "content": system}] if system else []
    outputs: list[RequestOutput] = []
    tokenizer = llm.llm_engine.tokenizer
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return outputs
        if not question:
            return outputs
        messages.append({"role": "user", "content": question})
        text = render_chat(tokenizer, messages)
        prompt = {
            "prompt": text,
            "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False),
        }
        try:
            output = print_stream(llm.stream(prompt, params))
        except KeyboardInterrupt:
            # The answer is cut short, the talk goes on without it.
            print()
            messages.pop()
            continue
        if output is not None:
            outputs.append(output)
            messages.append({"role": "assistant", "content": output.outputs[0].text})
