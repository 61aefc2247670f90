"""Workload files are interchangeable: numbers depend on kind, n and seed alone."""

import hashlib
import json
import subprocess
import sys

import pytest

from tidy.sources import ROOT

SCRIPT = ROOT / "benches" / "workloads.py"
DIGESTS = {
    "alpaca": "73dc35e6f21c9727",
    "decode-heavy": "20b8293c053c0944",
    "mixed": "e50f38c6a63b4db3",
    "shared-prefix": "6911c47cf9d48a10",
    "sharegpt": "fd1c4866838a40cc",
}


@pytest.mark.parametrize("kind", sorted(DIGESTS))
def test_a_seed_always_gives_the_same_file(tmp_path, kind):
    """Figures of different days and machines are compared; they must come from the same requests."""
    out = tmp_path / "workload.json"
    command = [sys.executable, str(SCRIPT), kind, "--n", "8", "--seed", "3", "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    workload = json.loads(out.read_text())
    assert workload["name"] == f"{kind}-8"
    digest = hashlib.sha256(json.dumps(workload["requests"]).encode()).hexdigest()
    assert digest[:16] == DIGESTS[kind]
    for request in workload["requests"]:
        assert request["max_tokens"] >= 1
        assert all(3 <= token_id < 8000 for token_id in request["prompt_token_ids"])
