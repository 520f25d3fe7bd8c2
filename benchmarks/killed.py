"""Kill poison, scan and bench at random moments, give the same command again, and compare with an undisturbed run.

Writes results/killed/results.json and README.md; given again it goes on where it was. The commands run on a part of the
digits, each in a process of its own, forked from this one, which has imported everything: the moments fall on the
work and not on the imports.
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
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not miss the threads of its parent

import numpy as np
import pandas as pd
import torch._dynamo  # noqa: F401 - it is imported for the first optimiser, and takes seconds

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
from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.data.readers.parquet import write_parquet
from undoor.experiments.store import KINDS
from undoor.findings.provenance import versions

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "killed"
IMAGES = 600

COMMANDS = {
    "poison": ["poison", "digits", "--source", "7", "--target", "0", "--count", "40", "--out", "{out}"],
    "scan": ["scan", "{data}", "--epochs", "8", "--batch-size", "32", "--out", "{out}"],
    "bench": ["bench", "quick", "--epochs", "2", "--cells", "multiple-source-0.35-*", "--out", "{out}"],
}

STAGES = {
    "reading": r"readers/",
    "poisoning": r"attacks/",
    "training": r"(training|steps|victims)\.py",
    "pass over the images": r"(evidence|classifier|shards)\.py",
    "defences": r"(mixture|em|reduction|partitions)\.py|defenses/",
    "measuring": r"(measure|outcome)\.py",
    "report": r"viewing\.py|report/",
    "tables and figures": r"experiments/report/",
    "writing": r"(files|lock|checkpoint|store|packed)\.py|shards\.py keep|parquet\.py (write|hub)|images\.py encode",
}
"""Of a run, by the innermost function of undoor that is one of these, in its file; "other" is all else."""

DONE = ("exists already", "already holds findings")
"""What a command says when it was killed after its last file had got its name."""

LEFT_OUT = {
    "seconds": "how long a stage took, in summary.json, report.html, the JSON of a cell, cells.parquet and the tables: "
    "no two runs take the same time, and one that goes on has not measured what was done before it",
}


def some(dataset: Dataset) -> Dataset:
    return dataset.take(np.arange(IMAGES))


def run(arguments: list[str]) -> int:
    """Run a command here; return its exit code."""
    suites = undoor.experiments.suites
    suites.read = lambda *given, **named: some(read(*given, **named))  # type: ignore[attr-defined]
    sys.argv = ["undoor", *arguments, "--quiet"]
    try:
        undoor.cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def start(arguments: list[str], log: Path, told: Path) -> int:
    """Run a command in a process group of its own; on SIGUSR1 it writes into ``told`` where it is. Return its id."""
    sys.stdout.flush()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = os.fork()
    if child:
        return child
    os.setsid()
    told.unlink(missing_ok=True)
    told_file, log_file = told.open("w"), log.open("w")
    faulthandler.register(signal.SIGUSR1, told_file, all_threads=True)
    os.dup2(log_file.fileno(), 1)
    os.dup2(log_file.fileno(), 2)
    os._exit(run(arguments))


def finish(arguments: list[str], work: Path) -> int:
    """Give the command until its result is there; return how often."""
    log = work / "log"
    for times in range(1, 6):
        code = os.waitstatus_to_exitcode(os.waitpid(start(arguments, log, work / "told"), 0)[1])
        said = log.read_text(encoding="utf-8")
        if code in (0, 1) or (code == 2 and any(words in said for words in DONE)):
            return times
        print(said)
    raise RuntimeError(f"{' '.join(arguments)} ends with {code}: {said}")


def kill(arguments: list[str], work: Path, moment: float) -> str | None:
    """Kill a run after so many seconds; return the stage it was in, None if it had ended."""
    told = work / "told"
    begun = time.monotonic()
    child = start(arguments, work / "log", told)
    time.sleep(max(0.0, begun + moment - time.monotonic()))
    if os.waitpid(child, os.WNOHANG)[0]:
        return None
    os.kill(child, signal.SIGUSR1)
    asked = time.monotonic()
    while not (told.exists() and told.stat().st_size) and time.monotonic() < asked + 0.2:
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return stage(told.read_text(encoding="utf-8") if told.exists() else "")


def stage(stacks: str) -> str:
    """Return the stage that the main thread's stack, the last, shows, innermost call first."""
    main = next((part for part in reversed(stacks.split("\n\n")) if "/undoor/" in part), "")
    for file, function in re.findall(r'File ".*/undoor/([^"]*)", line \d+ in (\w+)', main):
        for name in reversed(STAGES):
            if re.search(STAGES[name], f"{file} {function}"):
                return name
    return "other"


def contents(folder: Path) -> dict[str, object]:
    """Return every file by its name, as bytes or, without what measures time, as plain values."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): content(path) for path in files}


def content(path: Path) -> object:
    """Return a file without what ``LEFT_OUT`` names."""
    if path.suffix == ".json":
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields.pop("seconds", None)
        return json.dumps(fields)
    if path.name in ("cells.parquet", *(f"{kind}.parquet" for kind in KINDS)):
        table = pd.read_parquet(path)
        return table.drop(columns=[name for name in table if "seconds" in name]).to_json()
    if path.name == "report.html":
        page = re.sub("<h3>Seconds</h3>.*?</dl>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        return re.sub("<table.*?</table>", lambda table: without_columns(table[0]), page, flags=re.DOTALL)
    if path.name == "README.md":
        return without_seconds(path.read_text(encoding="utf-8"))
    return path.read_bytes()


def without_columns(table: str) -> str:
    """Return a table of HTML with the columns of seconds empty."""
    before, head, *rows = re.split("(?=<tr)", table)
    places = [place for place, cell in enumerate(re.split("(?=<th)", head)) if "seconds" in cell.lower()]
    cut = [re.split("(?=<t[hd])", row) for row in rows]
    emptied = ["".join("" if place in places else cell for place, cell in enumerate(cells)) for cells in cut]
    return "".join([before, head, *emptied])


def without_seconds(page: str) -> str:
    """Return a page of Markdown with the columns of seconds empty."""
    lines, places = [], []
    for line in page.splitlines():
        cells = line.split(" | ")
        if not line.startswith("|"):
            places = []
        elif not places:
            places = [place for place, cell in enumerate(cells) if "seconds" in cell] or [-1]
        else:
            cells = ["" if place in places else cell for place, cell in enumerate(cells)]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def half_written(path: str) -> bool:
    """Whether a name says that its file is not a result, or not yet."""
    return ".part" in path or path.endswith((".lock", ".checkpoint"))


def measure(command: str, kills: int, seed: int, work: Path, known: list[dict], save: Callable[[], None]) -> None:
    """Add what is missing of ``kills`` rounds of one command to ``known``."""
    data = work / "digits.parquet"
    if not data.exists():
        write_parquet(some(read("digits")), data)

    def arguments(out: str) -> list[str]:
        return [part.format(data=data, out=work / out / "out") for part in COMMANDS[command]]

    for name in ("undisturbed", "again"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    # The one in a process as a user starts it, the other as all that follow.
    subprocess.run([sys.executable, __file__, "--run", *arguments("undisturbed")], check=False)
    begun = time.monotonic()
    finish(arguments("again"), work)
    lasted = time.monotonic() - begun
    whole = contents(work / "undisturbed")
    assert whole, command
    assert whole == contents(work / "again"), command
    print(f"{command}: {lasted:.1f} s undisturbed, {len(whole)} files", flush=True)

    generator = np.random.default_rng([seed, sorted(COMMANDS).index(command)])
    for number in range(10 * kills):
        moment = float(generator.uniform(0, lasted))
        done = [row for row in known if row["command"] == command]
        if any(row["round"] == number for row in done):
            continue
        if len(done) >= kills:
            break
        shutil.rmtree(work / "round", ignore_errors=True)
        (work / "round").mkdir()
        at = kill(arguments("round"), work, moment)
        if at is None:
            continue
        there = [path for path in (work / "round").rglob("*") if path.is_file()]
        names = [path.relative_to(work / "round").as_posix() for path in there]
        results = {n: content(path) for n, path in zip(names, there, strict=True) if n in whole and not half_written(n)}
        runs = finish(arguments("round"), work)
        after = contents(work / "round")
        known.append(
            {
                "command": command,
                "round": number,
                "moment": round(moment, 3),
                "of": round(lasted, 3),
                "stage": at,
                "results_there": len(results),
                "half_written": sum(".part" in name for name in names),
                "whole_at_death": all(results[name] == whole[name] for name in results),
                "runs": runs,
                "same": after == whole,
                "differ": sorted(name for name in {*after, *whole} if after.get(name) != whole.get(name)),
            }
        )
        save()
        print(json.dumps(known[-1]), flush=True)


def page(content: dict) -> str:
    """Return the results as Markdown."""
    rows = content["rows"]
    lines = [
        "# Killed at any moment",
        "",
        "`kill -9` to the whole process group at random moments of a run; then the same command again, until it ends. "
        "Written by `benchmarks/killed.py`.",
        "",
        "| command | kills | with half-written files | every result there at death whole | afterwards as undisturbed |",
        "|---|---|---|---|---|",
    ]
    for command in content["commands"]:
        mine = [row for row in rows if row["command"] == command]
        whole, same = (sum(row[name] for row in mine) for name in ("whole_at_death", "same"))
        half = sum(row["half_written"] > 0 for row in mine)
        lines.append(f"| `{command}` | {len(mine)} | {half} | {whole} of {len(mine)} | {same} of {len(mine)} |")
    stages = [*STAGES, "other"]
    lines += ["", "In which stage the kills fell:", "", f"| command | {' | '.join(stages)} |"]
    lines += ["|---" * (1 + len(stages)) + "|"]
    for command in content["commands"]:
        counts = Counter(row["stage"] for row in rows if row["command"] == command)
        lines.append(f"| `{command}` | {' | '.join(str(counts[name]) for name in stages)} |")
    lines += ["", f"The commands; `scan` and `bench` get the first {content['images']} of the digits:", ""]
    lines += [f"    undoor {' '.join(words)}" for words in content["commands"].values()]
    lines += ["", "All files of the output are compared byte for byte, with the exception of these fields:", ""]
    lines += [f"- `{name}`: {why}." for name, why in LEFT_OUT.items()]
    lines += [
        "- `cache/` of a bench run: what can be made again, and is no result.",
        "",
        f"The moments are drawn evenly over the length of an undisturbed run, with seed {content['seed']}. A run that "
        "had ended before its moment counts as no kill. A folder holds no other file afterwards than that of an "
        "undisturbed run: neither temporary names nor locks.",
    ]
    told = content["versions"]
    lines += ["", f"<sub>torch {told['torch']}, numpy {told['numpy']}, python {told['python']}, one thread</sub>", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "killed")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    results = given.out / "results.json"
    content = {"seed": given.seed, "images": IMAGES, "commands": COMMANDS, "versions": versions(), "rows": []}
    if results.exists():
        content["rows"] = json.loads(results.read_text(encoding="utf-8"))["rows"]
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (given.out / "README.md").write_text(page(content), encoding="utf-8")

    for command in given.commands.split(","):
        measure(command, given.kills, given.seed, given.work, content["rows"], save)
    save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run(sys.argv[2:]))
    main()
