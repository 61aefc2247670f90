"""The command line: `pagedkv generate`, `pagedkv chat`, `pagedkv models`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pagedkv.cli import models
from pagedkv.cli.options import add_engine_options, add_sampling_options

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXAMPLES = """\
examples:
  pagedkv generate demo "Tell me a story about a fox."
  pagedkv generate demo "Once upon a time" --n 3 --max-tokens 60
  pagedkv chat demo
  pagedkv generate path/to/model "The capital of France is" --temperature 0
  pagedkv models --type qwen
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Returns:
        The exit status: 0, 1 after an error, 130 after Ctrl-C.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        return _print_version()
    if options.command is None:
        parser.print_help()
        return 0
    # These commands import torch; the help does not wait for it.
    from pagedkv.cli import chat, generate

    command = {"generate": generate.run, "chat": chat.run, "models": models.run}[options.command]
    try:
        return command(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError) as error:
        print(f"pagedkv: error: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    parser = argparse.ArgumentParser(
        prog="pagedkv",
        description="LLM inference with a paged KV cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    generate = commands.add_parser(
        "generate",
        help="continue prompts, streaming to the terminal",
        description="Continue prompts. One prompt streams as it is generated; several share a batch.",
    )
    _add_model(generate)
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts to continue")
    chat = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talk to a model through its chat template. An empty line or Ctrl-D ends the talk.",
    )
    _add_model(chat)
    chat.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    models.add_options(
        commands.add_parser(
            "models",
            help="list the types of models that run, and why others do not",
            description="List the causal language models of transformers: fast, slow, or refused.",
        )
    )
    for command, max_tokens in ((generate, 128), (chat, 512)):
        add_sampling_options(command, max_tokens=max_tokens)
        add_engine_options(command)
        command.add_argument(
            "--quiet", action="store_true", help="print the text alone, no summary of the KV cache"
        )
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="a folder, a hub id, or 'demo', the bundled model"
    )
    command.add_argument("--demo", action="store_true", help="use the bundled model")


def _print_version() -> int:
    from pagedkv import __version__

    print(f"pagedkv {__version__}")
    return 0
