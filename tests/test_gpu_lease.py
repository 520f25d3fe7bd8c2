"""The copies that ``tools.gpu_lease`` makes while it trains can be unpacked elsewhere, even if it is stopped."""

import json
import tarfile

from tools import gpu_lease
from tools.gpu_lease import NETWORKS_A_PART, Packed


def fill(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def unpacked(out, into):
    for part in sorted(out.glob("store-*.tar")):
        with tarfile.open(part) as tar:
            tar.extractall(into, filter="data")
    return {path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def test_what_is_new_in_a_store_is_copied_whole(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    out.mkdir()
    fill(store / "work/victims/old.safetensors", b"of an earlier run")
    packed = Packed(store, out)
    packed.copy()
    assert not list(out.iterdir())
    keys = [f"{k:02}" for k in range(2 * NETWORKS_A_PART + 1)]
    for key in keys:
        fill(store / f"work/victims/{key}.checkpoint", key.encode())
    fill(store / "work/victims/.00.safetensors.1234abcd.part", b"half")
    packed.copy()
    first = unpacked(out, tmp_path / "first")
    assert first == {f"work/victims/{key}.checkpoint": key.encode() for key in keys}
    assert len(list(out.iterdir())) == 3

    # The first network is finished. It stays in its tar file, and no other tar file is written again.
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (store / "work/victims/00.checkpoint").unlink()
    fill(store / "work/victims/00.safetensors", b"whole")
    fill(store / "work/victims/00.json", b"{}")
    packed.copy()
    again = unpacked(out, tmp_path / "again")
    expected = {f"work/victims/{key}.checkpoint": key.encode() for key in keys[1:]}
    assert again == {**expected, "work/victims/00.safetensors": b"whole", "work/victims/00.json": b"{}"}
    unchanged = [path.name for path, changed in before.items() if path.stat().st_mtime_ns == changed]
    assert sorted(unchanged) == ["store-2.tar", "store-3.tar"]
    assert not list(out.glob("*.part"))


def test_whole_trainings_are_predicted_from_epochs_of_fewer_images(tmp_path):
    row = {"preset": "fast", "compiled": True, "together": 4, "training_seconds_each": 2.5}
    (tmp_path / "compiled.json").write_text(json.dumps({"images": 1000, "epochs": [row]}))
    assert gpu_lease._predicted(tmp_path, 3000) == [
        {"preset": "fast", "compiled": True, "together": 4, "seconds": 30}
    ]  # fmt: skip
