"""The breakdown of a step names every part and loses no time."""

import json
import subprocess
import sys

from tidy.sources import ROOT


def test_the_parts_of_a_step_add_up_to_the_step():
    """A part that is not clocked would hide in another one's figure; a clock left running would count twice."""
    command = [
        sys.executable, str(ROOT / "benches" / "step_breakdown.py"),
        "--model", "demo", "--sequences", "1,3", "--steps", "20", "--threads", "1", "--json",
    ]  # fmt: skip
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    one, three = json.loads(finished.stdout)
    assert (one["sequences"], three["sequences"]) == (1, 3)
    for result in (one, three):
        parts = result["parts_ms"]
        for name in ("schedule", "projections", "attention", "head", "sampling", "update"):
            assert parts[name] > 0, name
        # Medians of parts against the median of the whole: equal but for the noise of the machine.
        assert 0.7 < sum(parts.values()) / result["clocked_ms"] < 1.3
        # All linear layers of the model, not none of them.
        assert 0.05 * parts["projections"] < result["floor_ms"] < result["clocked_ms"]
