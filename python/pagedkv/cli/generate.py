"""`pagedkv generate MODEL PROMPT...`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pagedkv.cli.options import sampling_params
from pagedkv.cli.session import open_llm, print_stream, print_summary

if TYPE_CHECKING:
    import argparse

    from pagedkv.outputs import RequestOutput


def run(options: argparse.Namespace) -> int:
    """Continues the prompts; returns the exit status."""
    model, prompts = model_and_prompts(options)
    # A mistake in a flag is said before the model is loaded.
    sampling_params(options, {})
    outputs: list[RequestOutput] = []
    with open_llm(options, model) as llm:
        params = sampling_params(options, llm.llm_engine.parts.generation_defaults.fields)
        if len(prompts) == 1 and params.n == 1:
            print(prompts[0], end="", flush=True)
            output = print_stream(llm.stream(prompts[0], params))
            outputs += [output] if output is not None else []
        else:
            outputs = llm.generate(prompts, params, use_tqdm=not options.quiet)
            for output in outputs:
                _print_output(output)
        if not options.quiet:
            print_summary(llm.stats(), outputs)
    return 1 if any(output.error for output in outputs) else 0


def model_and_prompts(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The model and the prompts; with ``--demo`` every positional argument is a prompt.

    Raises:
        ValueError: there is no model, or no prompt here nor on stdin.
    """
    prompts = list(options.prompts)
    if options.demo:
        prompts = [options.model, *prompts] if options.model is not None else prompts
        model = "demo"
    elif options.model is None:
        msg = "no model given; name a folder or a hub id, or use --demo for the bundled model"
        raise ValueError(msg)
    else:
        model = options.model
    if not prompts and not sys.stdin.isatty():
        text = sys.stdin.read().rstrip("\n")
        prompts = [text] if text else []
    if not prompts:
        msg = 'no prompt given; write one after the model, such as "Once upon a time"'
        raise ValueError(msg)
    return model, prompts


def _print_output(output: RequestOutput) -> None:
    for completion in output.outputs:
        label = f"[{completion.index}] " if len(output.outputs) > 1 else ""
        print(f"{label}{output.prompt}{completion.text}\n")
    if output.error is not None:
        print(f"[failed: {output.error}]", file=sys.stderr)
