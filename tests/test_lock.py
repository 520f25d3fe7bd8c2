"""Two runs do not write to one output, and what killed runs leave is removed."""

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
def holder():
    """Return a function that starts another process, which claims an output until its input ends."""
    with ExitStack() as stack:

        def hold(out):
            command = [sys.executable, "-c", HOLD, str(out)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.callback(process.stdin.close)
            stack.callback(process.stdout.close)
            assert process.stdout.readline() == "held\n"
            return process

        yield hold


def assert_refused(out):
    with pytest.raises(UndoorError, match=r"another run is writing .*; wait for it or choose"), claimed(out):
        pass


@pytest.mark.parametrize("existing", ["nothing", "file", "folder"])
def test_the_second_run_is_refused_until_the_first_ends(tmp_path, holder, existing):
    out = tmp_path / "parent" / "out"
    if existing == "file":
        out.parent.mkdir()
        out.write_text("x")
    elif existing == "folder":
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    process = holder(out)
    assert_refused(out)
    assert_refused(Path(os.path.relpath(out)))
    with claimed(out.with_name("other")):
        pass
    process.stdin.close()
    process.wait()
    assert sorted(tmp_path.rglob("*")) == before
    with claimed(out):
        assert_refused(out)
        thread = threading.Thread(target=assert_refused, args=(out,))
        thread.start()
        thread.join()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_claim_by_a_link_claims_the_folder(tmp_path, holder):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    holder(tmp_path / "link")
    assert_refused(tmp_path / "out")


def test_a_killed_run_leaves_a_file_but_no_lock(tmp_path, holder):
    process = holder(tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with claimed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_removed_file_does_not_count(tmp_path, monkeypatch):
    """The owner ends after the next run has opened the file, and before that run locks it.

    If the lock on the removed file counted, a third run could create and lock a new file.
    """
    out, flock = tmp_path / "out", lock.fcntl.flock
    owner = claimed(out)
    owner.__enter__()

    def end_the_owner_first(descriptor, operation):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        owner.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", end_the_owner_first)
    with claimed(out):
        assert_refused(out)


def test_the_lock_is_within_the_output_if_nothing_can_be_written_beside_it(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with claimed(out):
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/.lock"]
        assert_refused(out)
    assert not list(out.iterdir())


def test_a_notice_says_that_files_cannot_be_locked(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.warns(UndoorNotice, match="make sure that no other run writes there"), claimed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_instead_of_the_lock_file_is_not_followed(tmp_path):
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UndoorError, match="cannot write"), claimed(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()


class DeathError(BaseException):
    """The death of a process, after which it cleans nothing up."""


def die_within(writing):
    """Write something half, and end as if the process had been killed."""

    def die(*_, **__):
        raise DeathError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DeathError), writing as temporary:  # noqa: PT012
        (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
        patch.setattr("undoor.storage.atomic.Path.unlink", die)
        patch.setattr("undoor.storage.atomic.shutil.rmtree", die)
        die()


def test_leftovers_of_the_same_output_are_removed_and_no_others(tmp_path):
    out = tmp_path / "out"
    for folder in (out / "victims", out / "busy", tmp_path / "other"):
        folder.mkdir(parents=True)

    def leftovers():
        return sorted(path.relative_to(tmp_path).as_posix()[:-14] for path in tmp_path.rglob("*.part"))

    for writing in (atomic(tmp_path / "out2"), atomic(out / "busy" / "c.json"), atomic(tmp_path / "other" / "out")):
        die_within(writing)
    kept = leftovers()
    assert kept == [".out2", "other/.out", "out/busy/.c.json"]
    (out / "busy" / ".c.json.lock").touch()
    die_within(atomic_folder(tmp_path / "new"))
    for writing in (
        atomic(out),
        staged(out, last="summary.json"),
        atomic(tmp_path / "out.checkpoint"),
        atomic(out / "a.json"),
        atomic(out / "victims" / "b.json"),
    ):
        die_within(writing)
    assert len(leftovers()) == 9
    with claimed(out):
        assert leftovers() == sorted([".new", *kept])
    with claimed(tmp_path / "new"):
        assert leftovers() == kept


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
def test_every_command_that_writes_refuses_an_output_in_use(command, tmp_path, holder, monkeypatch, capsys):
    out = tmp_path / "out"
    holder(out)
    arguments = [word.format(data=tmp_path / "data", out=out) for word in COMMANDS[command]]
    monkeypatch.setattr(sys, "argv", ["undoor", *command.split(), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: another run is writing {out}; wait for it or choose another --out\n"
    assert not out.exists()


@pytest.mark.filterwarnings("ignore::undoor.errors.UndoorNotice")
def test_no_report_is_written_into_findings_that_another_run_writes(tmp_path, holder, monkeypatch, capsys):
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
    process = holder(out)
    assert run("report", str(out), "--data", str(tmp_path / "data.parquet")) == 2
    assert "another run is writing" in capsys.readouterr().err
    assert (out / "report.html").read_bytes() == b"of another run"
    process.stdin.close()
    process.wait()
    assert not run("report", str(out), "--data", str(tmp_path / "data.parquet"))
    assert (out / "report.html").read_bytes() != b"of another run"
