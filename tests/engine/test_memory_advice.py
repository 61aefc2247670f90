"""What the system is told about memory arrives there."""

import re
import resource
import sys
from pathlib import Path

import pytest
import torch

from pagedkv.pages import keep_freed_memory, prefer_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="advice for Linux")


def test_a_tensor_asks_for_large_pages():
    tensor = torch.empty(16 << 20, dtype=torch.uint8)
    prefer_large_pages(tensor)
    middle = tensor.data_ptr() + (8 << 20)
    mappings = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M
    )
    ranges = [(mapping, *mapping.split(" ", 1)[0].split("-")) for mapping in mappings if mapping]
    (own,) = [text for text, low, high in ranges if int(low, 16) <= middle < int(high, 16)]
    flags = re.search(r"VmFlags: (.*)", own)
    assert flags is None or "hg" in flags[1].split()


def test_what_a_step_frees_is_not_cleared_again_for_the_next():
    keep_freed_memory()
    num_pages = (8 << 20) // resource.getpagesize()

    def faults_of_a_step():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(8 << 20, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of_a_step()
    assert min(faults_of_a_step() for _ in range(5)) < num_pages / 10
