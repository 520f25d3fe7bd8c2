"""Writing of the samples of an image set that are kept, in the format of the set."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.data.readers import folder, parquet, read, reader_of
from undoor.errors import UndoorError, first_line
from undoor.storage.atomic import atomic_folder


def write_subset(
    source: str,
    ids: Sequence[str],
    kept: Sequence[str],
    out: Path,
    split: str = "train",
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write the samples ``kept`` of ``source`` into the new folder ``out``; the source stays as it is.

    A folder becomes a folder with copies of its files. Parquet becomes ``out/SPLIT.parquet`` with the same columns and
    bytes. All other sets become such a file too, with images in PNG, without loss.

    Args:
        source: what was scanned, as ``undoor.data.readers.read`` takes it.
        ids: the ids of all samples that were scanned; ``UndoorError`` is raised if the source lacks one.
        kept: the ids of the samples to write, in the order of the source.
        out: a folder that does not exist yet.
        split: the split of the source that was scanned.
        on_image: is called with the number of images that have been written and the number of all images.

    """
    path = Path(source)
    reader = None if source == "digits" or source.startswith("hub:") else reader_of(path)
    if reader is folder:
        # Only files that the reader lists are copied: ids from elsewhere could name any file of this machine.
        present = {file.relative_to(path).as_posix() for files in folder.listed(path)[1] for file in files}
        _require_present(ids, present, source)
        root = path.resolve()
        with atomic_folder(out) as temporary:
            for done, name in enumerate(kept, start=1):
                _require_own(path / name, root)
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path / name, temporary / name)
                if on_image is not None:
                    on_image(done, len(kept))
    elif reader is parquet:
        table = parquet.read_table(path, split)
        _require_present(ids, {str(row) for row in range(table.num_rows)}, source)
        rows = pa.array([int(name) for name in kept], pa.int64())
        with atomic_folder(out) as temporary:
            pq.write_table(table.take(rows), temporary / f"{split}.parquet", row_group_size=1000)
    else:
        dataset = read(source, split=split)
        _require_present(ids, set(dataset.ids.tolist()), source)
        with atomic_folder(out) as temporary:
            subset = dataset.take(np.isin(dataset.ids, list(kept)))
            parquet.write_parquet(subset, temporary / f"{split}.parquet", on_image)


def _require_present(ids: Sequence[str], present: set[str], source: str) -> None:
    missing = [name for name in ids if name not in present]
    if missing:
        raise UndoorError(
            f"{len(missing)} scanned samples are not in {source}, the first is {missing[0]}; "
            "give the data that was scanned"
        )


def _require_own(file: Path, root: Path) -> None:
    try:
        folder.require_own(file, root)
    except (OSError, ValueError, RuntimeError) as error:
        raise UndoorError(f"{file} is not copied: {first_line(error)}; scan again with --skip-broken") from error
