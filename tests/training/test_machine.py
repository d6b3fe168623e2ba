import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from fastcap.training.machine import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
assert keep_freed_memory()
print(first, min(faults() for _ in range(6)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_pages_are_fetched_once():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    before, after = map(int, done.stdout.split())
    assert before >= 5 * 32, "five blocks of 64 MB, in pages of 2 MB at most"
    assert after < 0.75 * before, "where the heap cannot grow in one piece, some blocks are still fetched anew"
