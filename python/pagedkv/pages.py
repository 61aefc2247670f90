"""What the system is told about memory. It is advice: where it is refused, all goes on."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Linux: drop pages from memory, after writing back what differs from the file; whoever reads them gets them again.
_MADV_PAGEOUT = 21
_MADV_HUGEPAGE = 14

# glibc: sizes from which on memory is mapped and unmapped by itself (this is the largest it takes), and given back.
_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP = -3, 32 << 20
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 256 << 20


def release_pages(tensor: torch.Tensor) -> None:
    """Lets go of the pages of a tensor that nobody reads any more, where it is a part of a mapped checkpoint.

    Any other memory goes with its tensor.
    """
    if not tensor.untyped_storage().resizable():
        _advise(tensor, _MADV_PAGEOUT)


def prefer_large_pages(tensor: torch.Tensor) -> None:
    """Has a tensor that is read block by block, from distinct places, translated in large pages.

    Small ones of 4 KiB are about as large as a block of one head, and each would be looked up.
    """
    _advise(tensor, _MADV_HUGEPAGE)


def keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one, up to 256 MiB.

    It would give the memory of activations back to the system after every operation, and get it again page by page, each
    cleared: a quarter of the time of a prefill of 512 tokens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    # Another C library has no such function, or none that does anything.
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _advise(tensor: torch.Tensor, advice: int) -> None:
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if num_bytes > 0:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), ctypes.c_int(advice)
        )
