"""Read mutated files with every reader and loader: each must end with a result or with an UndoorError.

``make fuzz`` installs atheris, which is libFuzzer for Python, into build/fuzz and runs every target for FUZZ_SECONDS.
An input that ends in another way is kept in build/fuzz/found, and its name says the target and the fault. The corpus
grows in build/fuzz/corpus. ``python -m tools.fuzz TARGET FILE`` reads one input again and shows where it fails.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "fuzz"
FAULTS, CORPUS = WORK / "found", WORK / "corpus"
LIMITS = ("-rss_limit_mb=3072", "-malloc_limit_mb=2048", "-timeout=20", "-max_len=200000", "-print_final_stats=1")
"""Options of libFuzzer. An input may take 3 GB of memory and 20 seconds."""
INSTRUMENTED = [
    "undoor",
    "PIL",
    "zipfile",
    "pickle",
    "pickletools",
    "json",
    "numpy.lib.format",
    "numpy.lib._format_impl",
]
"""The modules whose branches guide the mutations."""


def main() -> None:
    from tools.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="by default all targets, one after another")
    parser.add_argument("file", nargs="?", type=Path, help="read this input and show where it fails")
    parser.add_argument("--seconds", type=int, default=60, help="the duration of each target")
    options = parser.parse_args()
    if options.file is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[options.target].use(options.file.read_bytes(), Path(folder))
    else:
        names = [options.target] if options.target else list(TARGETS)
        faults = sum(watch(name, options.seconds) for name in names)
        sys.exit(faults > 0)


def watch(name: str, seconds: int) -> int:
    """Fuzz one target in a process of its own, and in a new one if it dies; return the number of new faults."""
    before, executions, deaths = faults_of(name), 0, 0
    end = time.monotonic() + seconds
    FAULTS.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(WORK), str(ROOT), os.environ.get("PYTHONPATH", "")])
    while (remaining := round(end - time.monotonic())) > 0:
        process = subprocess.run(
            [sys.executable, "-m", "tools.fuzz", "--inside", name, str(remaining)],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        counts = re.findall(r"stat::number_of_executed_units: +(\d+)", process.stderr)
        executions += int(counts[-1]) if counts else 0
        if process.returncode:
            deaths += 1
            (FAULTS / f"{name}-death-{deaths}.log").write_text(process.stderr[-20_000:], encoding="utf-8")
            if not counts:  # the process did not even start to fuzz
                break
    new = faults_of(name) - before
    lines = [f"{name}: {executions} executions, {len(new)} new findings", *sorted(path.name for path in new)]
    print(*lines, sep="\n  ", flush=True)
    return len(new)


def faults_of(name: str) -> set[Path]:
    """Return the inputs with which a target has failed; beside each is a text file with the traceback."""
    return {path for path in FAULTS.glob(f"{name}-*") if path.suffix != ".txt"}


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process. libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        import PIL.Image

        from tools.fuzz_targets import TARGETS

        PIL.Image.init()
    import torch

    from undoor.errors import UndoorError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, corpus = TARGETS[name], CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in target.seeds(Path(folder)):
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    desk = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

    def read(content: bytes) -> None:
        try:
            target.use(content, Path(desk))
        except UndoorError as error:
            if "\n" in str(error):
                keep(name, content, error)
        except Exception as error:
            keep(name, content, error)

    options = [f"-max_total_time={seconds}", f"-artifact_prefix={FAULTS / name}-", *LIMITS]
    atheris.Setup([sys.argv[0], str(corpus), *options], read)
    atheris.Fuzz()


def keep(name: str, content: bytes, error: Exception) -> None:
    """Keep the first input of each fault: an exception, and the last line of undoor in its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/undoor/" in frame.filename]
    where = f"{Path(frames[-1].filename).stem}:{frames[-1].lineno}" if frames else "elsewhere"
    path = FAULTS / f"{name}-{type(error).__name__}-{where}"
    if not path.exists():
        path.write_bytes(content)
        path.with_name(f"{path.name}.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        fuzz(sys.argv[2], int(sys.argv[3]))
    main()
