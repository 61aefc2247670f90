"""Runs every causal-LM type of the installed transformers and writes the table of what runs.

    python tools/sweep_models.py             all of them: python/pagedkv/models/catalog.tsv and docs/models.md
    python tools/sweep_models.py llama gptj  some of them, printed; nothing is written

Each type runs in a process of its own, so that a crash, a hang or a memory limit costs one line of the table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "models.md"
MEMORY_BYTES = 4 << 30
TIMEOUT_SECONDS = 180

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from pagedkv.catalog import CatalogEntry


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="run these alone, write nothing")
    parser.add_argument("--jobs", type=int, default=2, help="types at a time (default 2)")
    options = parser.parse_args()
    prepare_process()
    import transformers

    from models.sweep import TYPES
    from pagedkv.catalog import Catalog

    if unknown := set(options.types) - set(TYPES):
        parser.error(f"no causal-LM type of transformers: {', '.join(sorted(unknown))}")
    entries = []
    for entry, seconds in run_all(options.types or TYPES, jobs=options.jobs):
        entries.append(entry)
        line = f"{entry.status:10}{entry.model_type:26}{entry.scope:16}{seconds:5.1f} s"
        print(f"{line}  {entry.notes}", flush=True)
    catalog = Catalog(transformers.__version__, tuple(sorted(entries, key=lambda e: e.model_type)))
    if not options.types:
        catalog.write()
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(catalog.as_markdown(), encoding="utf-8")
    print(catalog.coverage())
    return 1 if any(entry.status == "wrong" for entry in entries) else 0


def prepare_process() -> None:
    """This repository's sources, one thread, no network and no noise; before torch is imported."""
    sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "critical", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    import logging
    import warnings

    import transformers

    logging.getLogger("pagedkv").addHandler(logging.NullHandler())
    logging.getLogger("pagedkv").propagate = False
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def run_all(types: list[str], *, jobs: int) -> Iterator[tuple[CatalogEntry, float]]:
    """Each type's entry and seconds, as they come."""
    # What is imported once is shared by all children.
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(types))
    running: dict[str, tuple[multiprocessing.Process, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            model_type = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=run_child, args=(model_type, sender))
            child.start()
            sender.close()
            running[model_type] = (child, receiver, time.monotonic())
        wait([receiver for _, receiver, _ in running.values()], timeout=1)
        for model_type, (child, receiver, started) in list(running.items()):
            seconds = time.monotonic() - started
            if (entry := finished(model_type, child, receiver, seconds)) is not None:
                child.join()
                receiver.close()
                del running[model_type]
                yield entry, seconds


def run_child(model_type: str, sender: Connection) -> None:
    """Runs a type and sends its entry; whatever else it writes is dropped."""
    from models.sweep import sweep_type

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        sender.send(sweep_type(model_type))
    sender.close()


def finished(
    model_type: str, child: multiprocessing.Process, receiver: Connection, seconds: float
) -> CatalogEntry | None:
    """The entry of a child that has one, has ended, or has had its time; None for one that runs."""
    from pagedkv.catalog import CatalogEntry

    if receiver.poll():
        try:
            return receiver.recv()
        except EOFError:
            child.join()
            return CatalogEntry(
                model_type, "text", "wrong", f"the process ended with {child.exitcode}"
            )
    if seconds > TIMEOUT_SECONDS:
        child.kill()
        notes = f"took more than {TIMEOUT_SECONDS} seconds"
        return CatalogEntry(model_type, "text", "wrong", notes)
    return None


if __name__ == "__main__":
    sys.exit(main())
