"""Kill poison, scan and bench at random moments, run the same command again, and compare with an undisturbed run.

    python -m studies.killed --kills 50

writes results/killed. If it is started again, it continues. The commands run on a part of the digits. Each runs in a
process that is forked from this one, which has imported everything already, so that the moments fall on the work and
not on the imports.
"""

import argparse
import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process does not have the threads of its parent

import numpy as np
import pandas as pd
import torch._dynamo  # noqa: F401 - imported with the first optimiser; it takes seconds

import undoor.cli
import undoor.cli.terminal
import undoor.data.readers.parquet
import undoor.defenses.training_set
import undoor.experiments.report.figures
import undoor.experiments.report.readme
import undoor.experiments.runner
import undoor.experiments.suites
import undoor.report
import undoor.scanning
from studies.shared import Study
from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.data.readers.parquet import write_parquet
from undoor.experiments.report.tables import markdown
from undoor.experiments.store import KINDS
from undoor.findings.provenance import versions

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "killed"
IMAGES = 600
"""Images of the digits that ``scan`` and ``bench`` work on, so that a run takes seconds."""

COMMANDS = {
    "poison": ["poison", "digits", "--source", "7", "--target", "0", "--count", "40", "--out", "{out}"],
    "scan": ["scan", "{data}", "--epochs", "8", "--batch-size", "32", "--out", "{out}"],
    "bench": ["bench", "quick", "--epochs", "2", "--cells", "multiple-source-0.35-*", "--out", "{out}"],
}

OTHER = "other"
STAGES = {
    "reading": r"data/readers/",
    "poisoning": r"attacks/",
    "training": r"networks/(training|steps|victims)\.py",
    "pass over the images": r"evidence/|networks/classifier\.py",
    "defenses": r"mixtures/|defenses/",
    "measuring": r"experiments/(measure|outcome)\.py",
    "report": r"findings/maps\.py|report/",
    "tables and figures": r"experiments/report/",
    "writing": r"storage/|checkpoint\.py|experiments/(store|packed)\.py|shards\.py keep|parquet\.py (write|hub)|"
    r"images\.py encode",
}
"""The stages of a run, each with a pattern of "FILE FUNCTION".

A run is in the stage of the innermost function of undoor that matches a pattern. If several patterns match, the last
one decides. A run without such a function is in the stage OTHER.
"""

FINISHED = ("exists already", "already holds findings")
"""Messages of a command that was killed after it had renamed its last file: the result is complete."""


def first_images(dataset: Dataset) -> Dataset:
    return dataset.take(np.arange(IMAGES))


def run(arguments: list[str]) -> int:
    """Run a command in this process; return its exit code."""
    suites = undoor.experiments.suites
    suites.read = lambda *positional, **named: first_images(read(*positional, **named))  # type: ignore[attr-defined]
    sys.argv = ["undoor", *arguments, "--quiet"]
    try:
        undoor.cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def start(arguments: list[str], log: Path, stacks: Path) -> int:
    """Run a command in its own process group; return its process id.

    On SIGUSR1 the process writes the stacks of its threads into a file.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = os.fork()
    if child:
        return child
    os.setsid()
    stacks.unlink(missing_ok=True)
    stacks_file, log_file = stacks.open("w"), log.open("w")
    faulthandler.register(signal.SIGUSR1, stacks_file, all_threads=True)
    os.dup2(log_file.fileno(), 1)
    os.dup2(log_file.fileno(), 2)
    os._exit(run(arguments))


def finish(arguments: list[str], work: Path) -> int:
    """Run the command until its result is complete; return how many runs it took."""
    log = work / "log"
    for runs in range(1, 6):
        code = os.waitstatus_to_exitcode(os.waitpid(start(arguments, log, work / "stacks"), 0)[1])
        output = log.read_text(encoding="utf-8")
        if code in (0, 1) or (code == 2 and any(message in output for message in FINISHED)):
            return runs
        print(output)
    raise RuntimeError(f"{' '.join(arguments)} ends with {code}: {output}")


def kill(arguments: list[str], work: Path, moment: float) -> str | None:
    """Kill a run after ``moment`` seconds; return the stage that it was in, or None if it had ended before."""
    stacks = work / "stacks"
    begin = time.monotonic()
    child = start(arguments, work / "log", stacks)
    time.sleep(max(0.0, begin + moment - time.monotonic()))
    if os.waitpid(child, os.WNOHANG)[0]:
        return None
    os.kill(child, signal.SIGUSR1)
    signalled = time.monotonic()
    while not (stacks.exists() and stacks.stat().st_size) and time.monotonic() < signalled + 0.2:
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return stage(stacks.read_text(encoding="utf-8") if stacks.exists() else "")


def stage(stacks: str) -> str:
    """Return the stage that the stack of the main thread shows; it comes last, its innermost call first."""
    main_stack = next((part for part in reversed(stacks.split("\n\n")) if "/undoor/" in part), "")
    for file, function in re.findall(r'File ".*/undoor/([^"]*)", line \d+ in (\w+)', main_stack):
        for name in reversed(STAGES):
            if re.search(STAGES[name], f"{file} {function}"):
                return name
    return OTHER


def contents(folder: Path) -> dict[str, object]:
    """Return the content of every file by its name, without the fields that are not compared."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): content(path) for path in files}


def content(path: Path) -> object:
    """Return the content of a file without the seconds that the stages took."""
    if path.suffix == ".json":
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields.pop("seconds", None)
        return json.dumps(fields)
    if path.name in ("cells.parquet", *(f"{kind}.parquet" for kind in KINDS)):
        table = pd.read_parquet(path)
        return table.drop(columns=[name for name in table if "seconds" in name]).to_json()
    if path.name == "report.html":
        html = re.sub("<h3>Seconds</h3>.*?</dl>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        return re.sub("<table.*?</table>", lambda table: without_columns(table[0]), html, flags=re.DOTALL)
    if path.name == "README.md":
        return without_seconds(path.read_text(encoding="utf-8"))
    return path.read_bytes()


def without_columns(table: str) -> str:
    """Return an HTML table whose columns of seconds are empty."""
    before, head, *rows = re.split("(?=<tr)", table)
    columns = [column for column, cell in enumerate(re.split("(?=<th)", head)) if "seconds" in cell.lower()]
    cut = [re.split("(?=<t[hd])", row) for row in rows]
    emptied = ["".join("" if column in columns else cell for column, cell in enumerate(cells)) for cells in cut]
    return "".join([before, head, *emptied])


def without_seconds(text: str) -> str:
    """Return a Markdown text with tables whose columns of seconds are empty."""
    lines, columns = [], []
    for line in text.splitlines():
        cells = line.split(" | ")
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = [column for column, cell in enumerate(cells) if "seconds" in cell] or [-1]
        else:
            cells = ["" if column in columns else cell for column, cell in enumerate(cells)]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def is_unfinished(path: str) -> bool:
    """Whether the name of a file says that it is not a result, or not yet."""
    return ".part" in path or path.endswith((".lock", ".checkpoint"))


def measure(command: str, kills: int, seed: int, work: Path, rows: list[dict], save: Callable[[], None]) -> None:
    """Append the missing rounds of a command to ``rows``, until there are ``kills`` of them."""
    data = work / "digits.parquet"
    if not data.exists():
        write_parquet(first_images(read("digits")), data)

    def arguments(out: str) -> list[str]:
        return [part.format(data=data, out=work / out / "out") for part in COMMANDS[command]]

    for name in ("undisturbed", "again"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    # The first runs in a process as a user starts it; the second is forked, like all that follow.
    subprocess.run([sys.executable, "-m", "studies.killed", "--run", *arguments("undisturbed")], cwd=ROOT, check=False)
    begin = time.monotonic()
    finish(arguments("again"), work)
    duration = time.monotonic() - begin
    whole = contents(work / "undisturbed")
    assert whole, command
    assert whole == contents(work / "again"), command
    print(f"{command}: {duration:.1f} s undisturbed, {len(whole)} files", flush=True)

    generator = np.random.default_rng([seed, sorted(COMMANDS).index(command)])
    for number in range(10 * kills):
        moment = float(generator.uniform(0, duration))
        rounds = [row["round"] for row in rows if row["command"] == command]
        if number in rounds:
            continue
        if len(rounds) >= kills:
            break
        shutil.rmtree(work / "round", ignore_errors=True)
        (work / "round").mkdir()
        killed_in = kill(arguments("round"), work, moment)
        if killed_in is None:
            continue
        files = {path.relative_to(work / "round").as_posix(): path for path in (work / "round").rglob("*")}
        files = {name: path for name, path in files.items() if path.is_file()}
        results = {name: content(path) for name, path in files.items() if name in whole and not is_unfinished(name)}
        runs = finish(arguments("round"), work)
        after = contents(work / "round")
        rows.append(
            {
                "command": command,
                "round": number,
                "moment": round(moment, 3),
                "of": round(duration, 3),
                "stage": killed_in,
                "results_there": len(results),
                "half_written": sum(".part" in name for name in files),
                "whole_at_death": all(results[name] == whole[name] for name in results),
                "runs": runs,
                "same": after == whole,
                "differ": sorted(name for name in {*after, *whole} if after.get(name) != whole.get(name)),
            }
        )
        save()
        print(json.dumps(rows[-1]), flush=True)


def page(content: dict) -> str:
    """Return the page of the results."""
    by_command = {
        command: [row for row in content["rows"] if row["command"] == command] for command in content["commands"]
    }
    outcomes = [
        [
            f"`{command}`",
            len(rows),
            sum(row["half_written"] > 0 for row in rows),
            *(f"{sum(row[name] for row in rows)} of {len(rows)}" for name in ("whole_at_death", "same")),
        ]
        for command, rows in by_command.items()
    ]
    head = ["command", "kills", "with half-written files", "all results complete when killed", "same as undisturbed"]
    stages = [*STAGES, OTHER]
    counts = {command: Counter(row["stage"] for row in rows) for command, rows in by_command.items()}
    stage_lines = [[f"`{command}`", *(count[name] for name in stages)] for command, count in counts.items()]
    commands = "\n".join(f"    undoor {' '.join(words)}" for words in content["commands"].values())
    numbers = content["versions"]
    return f"""\
# Killed at any moment

`kill -9` ends the whole process group at a random moment of a run. Then the same command is run again until it ends.
`python -m studies.killed` wrote this page.

{markdown(head, outcomes)}

The stages in which the runs were killed:

{markdown(["command", *stages], stage_lines)}

The commands; `scan` and `bench` work on the first {content["images"]} of the digits:

{commands}

All files of the output are compared byte for byte, except for:

- `seconds`: the duration of a stage, in summary.json, report.html, the JSON of a cell, cells.parquet and the tables. No
  two runs take the same time, and a run that continues has not measured what came before.
- `cache/` of a bench run: it can be computed again and is not a result.

The moments are drawn uniformly over the duration of an undisturbed run, with seed {content["seed"]}. A run that had
ended before its moment does not count. Afterwards a folder holds the same files as that of an undisturbed run, without
temporary files and locks.

<sub>torch {numbers["torch"]}, numpy {numbers["numpy"]}, python {numbers["python"]}, one thread</sub>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="rounds of each command")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "killed", help="the folder for the runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder for the results")
    options = parser.parse_args()
    study = Study(options.out)
    content = {
        "seed": options.seed,
        "images": IMAGES,
        "commands": COMMANDS,
        "versions": versions(),
        "rows": study.read()["rows"],
    }
    options.work.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        study.write(content)
        study.write_page(page(content))

    for command in options.commands.split(","):
        measure(command, options.kills, options.seed, options.work, content["rows"], save)
    save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run(sys.argv[2:]))
    main()
