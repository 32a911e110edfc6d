"""What is kept of freed memory."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, sys, threading
from pipeline.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for times in range(24):
        torch.ones(2**24)  # 64 MiB
        if times == 12:  # the first leave small pieces between them
            begun.append(faults())
begun = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults() - begun[0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_the_pages_of_freed_memory_are_asked_of_the_system_once():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CHILD, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "returned")
    }
    assert faults["kept"] < faults["returned"] / 10


def test_another_c_library_is_left_as_it_is(monkeypatch):
    from pipeline import heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed_memory()
