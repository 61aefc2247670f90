"""`import pagedkv` stays cheap: the heavy packages wait until an engine is built."""

import subprocess
import sys

HEAVY = ["torch", "transformers", "tokenizers", "cupy", "numpy"]
PROGRAM = """
import sys, time
start = time.perf_counter()
import pagedkv
seconds = time.perf_counter() - start
print(seconds, *(name for name in {heavy!r} if name in sys.modules))
"""


def import_in_a_fresh_interpreter():
    """Seconds that the import took, and the heavy modules it brought along."""
    command = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, *modules = output.split()
    return float(seconds), modules


def test_importing_the_package_is_quick_and_imports_nothing_heavy():
    """Under 0.2 s; the best of three, so that a busy machine does not fail it."""
    runs = [import_in_a_fresh_interpreter() for _ in range(3)]
    assert [modules for _, modules in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 0.2
