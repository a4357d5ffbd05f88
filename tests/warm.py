"""A Python that has torch imported when it starts: each of its processes is forked from one server.

    with warm.python() as python:
        subprocess.run([python, "-m", "fastrnn", "demo"])

A process has the directory, environment, standard files and arguments of the call, and the call
ends as it does, of a signal too. It takes a script, -m or -c, and of the interpreter's options -u
alone: what it prints is never buffered.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# An optimizer imports torch._dynamo, which takes as long as torch itself. fastrnn is not here: a program
# imports the one that its PYTHONPATH leads to.
PRELOAD = ("numpy", "pytest", "torch", "torch._dynamo")
MAX_REQUEST = 1 << 17  # bytes, below what a socket takes in one message

# It has no site-packages and so starts in 20 ms.
CLIENT = f"""\
#!{sys.executable} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(os.path.join(os.path.dirname(__file__), "socket"))
request = {{"arguments": sys.argv[1:], "directory": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
status = int(connection.recv(16))
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextlib.contextmanager
def python() -> Iterator[str]:
    """The path of an executable that is called as Python's is."""
    with tempfile.TemporaryDirectory(prefix="fastrnn-warm-") as folder:
        client = Path(folder) / "python"
        client.write_text(CLIENT)
        client.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(Path(folder) / "socket"))
        listener.listen()  # A client that comes before the server has imported torch waits.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # The server's standard input lives as long as this process: its end ends the server.
        with (
            listener,
            subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env={**environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            ),
        ):
            yield str(client)


def serve(listener: socket.socket) -> None:
    """Fork a process for each request, until standard input ends."""
    clients: dict[int, socket.socket] = {}  # by process
    ends: dict[int, int] = {}  # a process by the file that tells its end
    while sys.stdin not in (
        ready := select.select([listener, sys.stdin, *clients.values(), *ends], [], [])[0]
    ):
        for process, client in clients.items():
            if client in ready:  # It has nothing more to say: it was killed.
                os.kill(process, signal.SIGKILL)
        for end in ends.keys() & set(ready):
            process = ends.pop(end)
            os.close(end)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            with clients.pop(process) as client, contextlib.suppress(BrokenPipeError):
                client.send(str(status).encode())
        if listener in ready:
            client, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(client, MAX_REQUEST, 3)
            process = os.fork()
            if process == 0:
                for own in (listener, client, *clients.values()):
                    own.close()
                become(json.loads(message), files)
                sys.exit(run())
            for file in files:
                os.close(file)
            clients[process] = client
            ends[os.pidfd_open(process)] = process


def become(request: dict, files: list[int]) -> None:
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]


def run() -> None:
    """Run what sys.argv asks for, with the path of modules that Python gives it."""
    first, *others = sys.argv[2:] if sys.argv[1] == "-u" else sys.argv[1:]
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if first == "-m":
        name, *others = others
        sys.path[:1] = [os.getcwd(), *folders]
        sys.argv[:] = ["", *others]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *others = others
        sys.path[:1] = ["", *folders]
        sys.argv[:] = ["-c", *others]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    elif first.startswith("-"):
        raise ValueError(f"{first}: a warm Python takes a script, -m or -c")
    else:
        sys.path[:1] = [str(Path(first).resolve().parent), *folders]
        sys.argv[:] = [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for module in PRELOAD:
        importlib.import_module(module)
    gc.freeze()  # Else each process would copy all of it, only to look for cycles at its end.
    serve(socket.socket(fileno=int(sys.argv[1])))
