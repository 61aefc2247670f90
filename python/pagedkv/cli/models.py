"""`pagedkv models`."""

from __future__ import annotations

import difflib
import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from pagedkv.catalog import STATUSES, Catalog

if TYPE_CHECKING:
    import argparse

    from pagedkv.catalog import CatalogEntry

_LEAST_NOTES_WIDTH = 40


def add_options(command: argparse.ArgumentParser) -> None:
    """Filters and the form of the output."""
    command.add_argument("--type", metavar="NAME", help="types whose name contains NAME")
    command.add_argument("--status", choices=list(STATUSES), help="types of one status")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the table, or the part that was asked for; returns the exit status.

    Raises:
        ValueError: no type has such a name.
    """
    catalog = Catalog.read()
    entries = catalog.select(options.type or "")
    if not entries:
        names = [entry.model_type for entry in catalog.entries]
        near = difflib.get_close_matches(options.type, names, n=3)
        hint = f"; near it: {', '.join(near)}" if near else "; list all with: pagedkv models"
        msg = (
            f"no causal language model of transformers {catalog.transformers_version} has "
            f"{options.type!r} in its type{hint}"
        )
        raise ValueError(msg)
    entries = tuple(e for e in entries if options.status in (None, e.status))
    if options.json:
        print(json.dumps(catalog.as_json(entries), indent=1))
        return 0
    print_table(entries, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    if not options.type and not options.status:
        print(f"\n{catalog.coverage()}")
        print(f"Made with transformers {catalog.transformers_version}; the method: docs/models.md")
    return 0


def print_table(entries: tuple[CatalogEntry, ...], *, width: int | None) -> None:
    """Prints one line per type.

    Args:
        entries: The lines.
        width: Columns of the terminal, where long notes go on below; None for lines of any length, as programs read them.
    """
    columns = ("model_type", "scope", "status")
    widths = [max([len(getattr(entry, name)) for entry in entries] or [0]) for name in columns]
    margin = sum(widths) + 2 * len(widths)
    for entry in entries:
        fields = zip(columns, widths, strict=True)
        head = "  ".join(getattr(entry, name).ljust(size) for name, size in fields)
        notes = [entry.notes]
        if width is not None:
            notes = textwrap.wrap(entry.notes, max(_LEAST_NOTES_WIDTH, width - margin)) or [""]
        print(f"{head}  {notes[0]}".rstrip())
        for line in notes[1:]:
            print(" " * margin + line)
