"""Run undoor in child processes of a process that has imported everything, which saves the imports of each run.

Every line of JSON on standard input says what to run; a line on standard output says how it ended.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

VIRTUAL_MEMORY = 12 * 2**30
"""Bytes that a child may reserve, so that a limit that undoor lacks does not bring down the machine of the tests."""


def serve() -> None:
    """Import all modules, and run undoor for every line of standard input."""
    import torch

    import undoor

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(undoor.__path__, "undoor."):
        if module.name not in ("undoor.integrations.datalab", "undoor.__main__"):
            importlib.import_module(module.name)
    for name in ("datasets", "torch._dynamo"):  # undoor imports these only when it needs them
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


def run(folder: str, arguments: list[str], seconds: float) -> dict[str, object]:
    """Run undoor in a folder; return its exit code, the seconds of the processor and the largest memory in bytes.

    It is killed after ``seconds``.
    """
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_undoor(folder, arguments)
    status, usage = None, None
    while status is None:
        done, ended, usage = os.wait4(child, os.WNOHANG)
        if done:
            status = ended
        elif time.monotonic() - begun > seconds:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        else:
            time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss * 1024}


def _become_undoor(folder: str, arguments: list[str]) -> None:
    """Run undoor in this process and end it; its input is the file ``stdin`` of the folder, if that exists."""
    code = 99
    try:
        os.chdir(folder)
        stdin = Path("stdin")
        os.dup2(os.open(stdin if stdin.exists() else os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - until the end
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (VIRTUAL_MEMORY, VIRTUAL_MEMORY))
        sys.argv = ["undoor", *arguments]
        from undoor import cli
        from undoor.cli import terminal

        for console, stream in ((terminal.out, sys.stdout), (terminal.err, sys.stderr)):
            console.file = stream
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
