"""Two runs on one output, and what killed ones leave."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import make_dataset
from undoor import cli
from undoor.data.readers.parquet import write_parquet
from undoor.errors import UndoorError, UndoorNotice
from undoor.storage import lock
from undoor.storage.atomic import atomic, atomic_folder, staged
from undoor.storage.lock import claimed

HOLD = """
import sys
from pathlib import Path
from undoor.storage.lock import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the output it is told."""
    with ExitStack() as stack:

        def hold(out):
            command = [sys.executable, "-c", HOLD, str(out)]
            other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(other.wait)
            stack.callback(other.kill)
            stack.callback(other.stdin.close)
            stack.callback(other.stdout.close)
            assert other.stdout.readline() == "held\n"
            return other

        yield hold


def refused(out):
    with pytest.raises(UndoorError, match=r"another run is writing .*; wait for it or choose"), claimed(out):
        pass


@pytest.mark.parametrize("there", ["nothing", "file", "folder"])
def test_the_second_is_refused_as_long_as_the_first_lasts(tmp_path, holder, there):
    out = tmp_path / "made" / "out"
    if there == "file":
        (tmp_path / "made").mkdir()
        out.write_text("x")
    elif there == "folder":
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    other = holder(out)
    refused(out)
    refused(Path(os.path.relpath(out)))
    with claimed(out.with_name("other")):
        pass
    other.stdin.close()
    other.wait()
    assert sorted(tmp_path.rglob("*")) == before
    with claimed(out):
        refused(out)
        thread = threading.Thread(target=refused, args=(out,))
        thread.start()
        thread.join()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_a_folder_is_that_folder(tmp_path, holder):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    holder(tmp_path / "link")
    refused(tmp_path / "out")


def test_a_killed_run_holds_nothing(tmp_path, holder):
    other = holder(tmp_path / "out")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with claimed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_owner_has_removed_locks_nothing(tmp_path, monkeypatch):
    """The owner goes between the other's opening the file and locking it: else two would hold locks on two files."""
    out, flock = tmp_path / "out", lock.fcntl.flock
    owner = claimed(out)
    owner.__enter__()

    def late(descriptor, how):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        owner.__exit__(None, None, None)
        flock(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with claimed(out):
        refused(out)


def test_where_nothing_can_be_written_beside_it_the_lock_lies_within(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with claimed(out):
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/.lock"]
        refused(out)
    assert not list(out.iterdir())


def test_where_files_cannot_be_locked_a_notice_says_so(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.warns(UndoorNotice, match="see that no other run writes there"), claimed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UndoorError, match="cannot write"), claimed(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()


class DeadError(BaseException):
    """After which nothing more is done, as if the process were gone."""


def die_within(part):
    def dead(*_, **__):
        raise DeadError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DeadError), part as temporary:  # noqa: PT012
        (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
        patch.setattr("undoor.storage.atomic.Path.unlink", dead)
        patch.setattr("undoor.storage.atomic.shutil.rmtree", dead)
        dead()


def test_leftovers_of_the_same_output_go_and_no_others(tmp_path):
    out = tmp_path / "out"
    for folder in (out / "victims", out / "busy", tmp_path / "other"):
        folder.mkdir(parents=True)

    def left():
        return sorted(path.relative_to(tmp_path).as_posix()[:-14] for path in tmp_path.rglob("*.part"))

    others = [atomic(tmp_path / "out2"), atomic(out / "busy" / "c.json"), atomic(tmp_path / "other" / "out")]
    for part in others:
        die_within(part)
    kept = left()
    assert kept == [".out2", "other/.out", "out/busy/.c.json"]
    (out / "busy" / ".c.json.lock").touch()
    die_within(atomic_folder(tmp_path / "new"))
    for part in (
        atomic(out),
        staged(out, last="summary.json"),
        atomic(tmp_path / "out.checkpoint"),
        atomic(out / "a.json"),
        atomic(out / "victims" / "b.json"),
    ):
        die_within(part)
    assert len(left()) == 9
    with claimed(out):
        assert left() == sorted([".new", *kept])
    with claimed(tmp_path / "new"):
        assert left() == kept


COMMANDS = {
    "scan": ["{data}", "--out", "{out}"],
    "train": ["{data}", "--out", "{out}"],
    "poison": ["{data}", "--target", "class0", "--out", "{out}"],
    "clean": ["{data}", "--findings", "{data}", "--out", "{out}"],
    "inspect": ["{data}", "--data", "{data}", "--out", "{out}"],
    "prune": ["{data}", "--data", "{data}", "--out", "{out}"],
    "guard fit": ["{data}", "--data", "{data}", "--out", "{out}"],
    "guard check": ["{data}", "--guard", "{data}", "--out", "{out}"],
    "demo": ["--out", "{out}"],
    "bench": ["quick", "--out", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_refuses_to_be_the_second(command, tmp_path, holder, monkeypatch, capsys):
    out = tmp_path / "out"
    holder(out)
    given = [part.format(data=tmp_path / "data", out=out) for part in COMMANDS[command]]
    monkeypatch.setattr(sys, "argv", ["undoor", *command.split(), *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: another run is writing {out}; wait for it or choose another --out\n"
    assert not out.exists()


@pytest.mark.filterwarnings("ignore::undoor.errors.UndoorNotice")
def test_a_report_is_not_written_into_findings_that_are_being_written(tmp_path, holder, monkeypatch, capsys):
    write_parquet(make_dataset(n_per_class=4), tmp_path / "data.parquet")
    out = tmp_path / "findings"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["undoor", *arguments, "--quiet"])
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code

    assert not run("scan", str(tmp_path / "data.parquet"), "--epochs", "1", "--exit-zero", "--out", str(out))
    (out / "report.html").write_bytes(b"of another run")
    other = holder(out)
    assert run("report", str(out), "--data", str(tmp_path / "data.parquet")) == 2
    assert "another run is writing" in capsys.readouterr().err
    assert (out / "report.html").read_bytes() == b"of another run"
    other.stdin.close()
    other.wait()
    assert not run("report", str(out), "--data", str(tmp_path / "data.parquet"))
    assert (out / "report.html").read_bytes() != b"of another run"
