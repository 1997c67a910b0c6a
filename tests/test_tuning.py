"""What tuning changes in this process, in one of its own."""

from __future__ import annotations

import subprocess
import sys

_COUNT_PAGE_FAULTS = """
import resource, sys
from aoefs import tuning

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "tuned":
    tuning.keep_freed_memory()
for turn in range(20):
    if turn == 10:
        before = page_faults()
    buffers = [bytes(1 << 20).replace(b"\\0", b"x") for _ in range(4)]
    del buffers
print(page_faults() - before)
"""


def page_faults_of_ten_turns(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _COUNT_PAGE_FAULTS, how], capture_output=True, check=True).stdout)


def test_buffers_of_writes_come_from_memory_that_is_there_already() -> None:
    assert page_faults_of_ten_turns("tuned") < 100
    assert page_faults_of_ten_turns("plain") > 1000, "this test could not fail"
