"""Runs pytest many times, each in a process of its own, without importing torch each time.

A line of input asks for one run, in JSON: its environment, arguments, the file that takes what it
prints, and after how many seconds it is killed. A line of output answers with its exit status, of
a signal the negative number.
"""

import json
import os
import signal
import sys

import numpy  # noqa: F401
import pytest
import torch  # noqa: F401

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(request["seconds"])
        os.environ.update(request["environment"])
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(pytest.main(request["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
