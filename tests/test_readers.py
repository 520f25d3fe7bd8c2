"""Every format is read as it was written, and what cannot be read is an error of one line."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import undoor
from conftest import make_dataset
from helpers.image_folders import write_folder
from undoor.data.readers.parquet import write_parquet
from undoor.errors import UndoorError, UndoorNotice
from undoor.safe.images import encode_png


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_classes_labels_and_relative_paths(tmp_path, channels):
    written = make_dataset(n_per_class=3, channels=channels)
    read = undoor.read(write_folder(written, tmp_path / "set"))
    assert read.class_names == written.class_names
    assert np.array_equal(read.images, written.images)
    assert np.array_equal(read.labels, written.labels)
    assert read.ids[0] == "class0/000.png"
    assert read.truth is None


def test_a_class_in_a_folder_may_have_the_name_of_a_split(tmp_path):
    dataset = replace(make_dataset(n_per_class=2, classes=2), class_names=("bus", "train"))
    assert undoor.read(write_folder(dataset, tmp_path)).class_names == ("bus", "train")


def test_a_folder_of_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        write_folder(make_dataset(n_per_class=2), tmp_path / split)
    with pytest.raises(UndoorError, match="holds splits, not classes; give one of them"):
        undoor.read(tmp_path)


def test_parquet_keeps_pixels_names_and_truth(tmp_path, dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=6, size=0.5)
    poisoned = undoor.poison(dataset, attack)
    write_parquet(poisoned, tmp_path / "train.parquet")
    for source in (tmp_path, tmp_path / "train.parquet"):
        read = undoor.read(source)
        assert np.array_equal(read.images, poisoned.images)
        assert np.array_equal(read.labels, poisoned.labels)
        assert read.class_names == poisoned.class_names
        assert np.array_equal(read.truth.poisoned, poisoned.truth.poisoned)
        assert np.array_equal(read.truth.original_labels, poisoned.truth.original_labels)


def test_parquet_with_plain_bytes_and_string_labels(tmp_path, dataset):
    names = [dataset.class_names[label] for label in dataset.labels]
    table = pa.table({"picture": [encode_png(image) for image in dataset.images], "kind": names})
    pq.write_table(table, tmp_path / "x.parquet")
    read = undoor.read(tmp_path / "x.parquet", label_column="kind")
    assert read.class_names == dataset.class_names
    assert np.array_equal(read.labels, dataset.labels)
    with pytest.raises(UndoorError, match="no label column label or labels"):
        undoor.read(tmp_path / "x.parquet")
    with pytest.raises(UndoorError, match="no image column 'pixels'"):
        undoor.read(tmp_path / "x.parquet", label_column="kind", image_column="pixels")


def test_a_parquet_label_outside_the_class_names_is_refused(tmp_path, dataset):
    described = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": [encode_png(image) for image in dataset.images], "label": dataset.labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UndoorError, match=r"label 2 of sample 40 is outside 0 … 1 \(20 such labels\)"):
        undoor.read(tmp_path / "x.parquet")


def test_a_hub_data_set_is_read_from_a_local_copy(tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_parquet(dataset, tmp_path / "copy" / "data" / "train-00000-of-00001.parquet")
    read = undoor.read(f"hub:{tmp_path / 'copy'}")
    assert np.array_equal(read.images, dataset.images)
    assert np.array_equal(read.labels, dataset.labels)
    assert read.class_names == dataset.class_names


def test_a_hub_data_set_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UndoorError, match="cannot be loaded"):
        undoor.read(f"hub:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_is_read_in_every_layout(tmp_path, layout):
    written = make_dataset(n_per_class=2, channels=1 if layout == "NHW" else 3)
    stored = {
        "NHW": written.images[:, 0],
        "NHWC": written.images.transpose(0, 2, 3, 1),
        "NCHW": written.images,
    }[layout]
    np.savez(tmp_path / "x.npz", images=stored, labels=written.labels, class_names=np.array(written.class_names))
    read = undoor.read(tmp_path / "x.npz")
    assert np.array_equal(read.images, written.images)
    assert read.class_names == written.class_names


def test_npz_has_unique_ids(tmp_path, dataset):
    ids = np.array([f"image {k}" for k in range(60)])
    np.savez(tmp_path / "x.npz", images=dataset.images, labels=dataset.labels, ids=ids)
    assert np.array_equal(undoor.read(tmp_path / "x.npz").ids, ids)
    ids[1] = ids[0]
    np.savez(tmp_path / "x.npz", images=dataset.images, labels=dataset.labels, ids=ids)
    with pytest.raises(UndoorError, match="some ids occur more than once"):
        undoor.read(tmp_path / "x.npz")


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([{}, []], dtype=object), labels=np.arange(2))
    with pytest.raises(UndoorError, match="plain arrays"):
        undoor.read(tmp_path / "x.npz")


def cifar_images(n, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3 * 32 * 32)).astype(np.uint8), generator.integers(0, 10, n)


def test_python_batches_of_cifar10_are_read_in_order(tmp_path):
    for number in (1, 2):
        pixels, labels = cifar_images(4, number)
        content = {b"data": pixels, b"labels": labels.tolist(), b"filenames": [b"x"] * 4}
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(content, protocol=2))
    names = [b"plane", b"car", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i"]
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    read = undoor.read(tmp_path)
    assert read.images.shape == (8, 3, 32, 32)
    assert np.array_equal(read.images[4:].reshape(4, -1), cifar_images(4, 2)[0])
    assert np.array_equal(read.labels[4:], cifar_images(4, 2)[1])
    assert read.class_names[:2] == ("plane", "car")


def test_binary_batches_of_cifar10_and_cifar100_are_read(tmp_path):
    pixels, labels = cifar_images(5)
    cifar10 = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
    cifar10.tofile(tmp_path / "data_batch_1.bin")
    assert np.array_equal(undoor.read(tmp_path / "data_batch_1.bin").labels, labels)
    cifar100 = np.concatenate([np.zeros((5, 1), np.uint8), labels[:, None].astype(np.uint8), pixels], axis=1)
    cifar100.tofile(tmp_path / "test.bin")
    read = undoor.read(tmp_path / "test.bin")
    assert np.array_equal(read.labels, labels)
    assert np.array_equal(read.images.reshape(5, -1), pixels)
    assert len(read.class_names) == 100


def test_a_python_batch_of_cifar100_has_its_fine_labels(tmp_path):
    pixels, labels = cifar_images(4)
    content = {b"data": pixels, b"fine_labels": labels.tolist(), b"coarse_labels": [0] * 4}
    (tmp_path / "train").write_bytes(pickle.dumps(content))
    names = [f"name{k}".encode() for k in range(100)]
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
    read = undoor.read(tmp_path)
    assert np.array_equal(read.labels, labels)
    assert read.class_names[42] == "name42"


def test_a_cifar_batch_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Harmful(), b"labels": [0]}))
    with pytest.raises(UndoorError, match=r"no CIFAR batch: it asks for (_?io|builtins)\.open"):
        undoor.read(tmp_path / "data_batch_1")
    assert not (tmp_path / "marker").exists()


def test_digits_share_no_original_between_splits_and_are_always_the_same():
    train, test = undoor.read("digits"), undoor.read("digits", split="test")
    assert train.images.shape == (5000, 1, 16, 16)
    assert np.array_equal(train.images, undoor.read("digits").images)
    assert np.bincount(train.labels).min() > 400
    assert len(np.unique(train.images.reshape(5000, -1), axis=0)) == 5000
    assert test.images.shape[1:] == train.images.shape[1:]
    with pytest.raises(UndoorError, match="choose train or test"):
        undoor.read("digits", split="validation")


def test_images_of_several_sizes_are_resized_with_one_notice(tmp_path):
    write_folder(make_dataset(n_per_class=3), tmp_path)
    big = Image.fromarray(np.full((40, 30), 200, np.uint8))
    big.save(tmp_path / "class0" / "big.png")
    big.convert("RGB").save(tmp_path / "class1" / "big.jpg")
    with pytest.warns(UndoorNotice, match="2 of 11 images are not 12×12 pixels") as notices:
        read = undoor.read(tmp_path)
    assert len(notices) == 1
    assert read.images.shape == (11, 3, 12, 12)
    assert (read.images[list(read.ids).index("class0/big.png")] == 200).all()
    assert undoor.read(tmp_path, image_size=20).images.shape == (11, 3, 20, 20)


@pytest.mark.parametrize("odd", [0, 3, 99])
@pytest.mark.parametrize(("mode", "size"), [("L", (8, 8)), ("RGB", (5, 9)), ("L", (5, 9)), ("RGB", (8, 8))])
def test_one_image_of_another_shape_is_converted_wherever_it_stands(tmp_path, odd, mode, size):
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(pixels) for pixels in generator.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)]
    pictures[odd] = pictures[odd].convert(mode).resize(size)
    (tmp_path / "a").mkdir()
    for row, picture in enumerate(pictures):
        picture.save(tmp_path / "a" / f"{row:03}.png")
    if size == (8, 8):
        read = undoor.read(tmp_path)
    else:
        with pytest.warns(UndoorNotice, match="1 of 100 images are not 8×8 pixels"):
            read = undoor.read(tmp_path)
    expected = [np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)) for image in pictures]
    assert np.array_equal(read.images.transpose(0, 2, 3, 1), expected)


def test_sixteen_bit_images_keep_their_upper_bits(tmp_path):
    for name, value in (("a", 0x1234), ("b", 0xFEDC)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / name / "x.png")
    assert undoor.read(tmp_path).images[:, 0, 0, 0].tolist() == [0x12, 0xFE]


def test_broken_images_are_listed_and_skipped_only_when_asked(tmp_path):
    write_folder(make_dataset(n_per_class=3), tmp_path)
    (tmp_path / "class1" / "001.png").write_bytes(b"no image")
    (tmp_path / "class2" / "zzz.png").write_bytes(encode_png(make_dataset().images[0])[:-60])
    with pytest.raises(UndoorError, match=r"2 of 11 images cannot be decoded: class1/001\.png .*--skip-broken"):
        undoor.read(tmp_path)
    with pytest.warns(UndoorNotice, match="skipped: 2 of 11"):
        read = undoor.read(tmp_path, skip_broken=True)
    assert len(read) == 9
    assert "class1/001.png" not in read.ids


def test_an_image_with_too_many_pixels_is_broken(tmp_path, monkeypatch):
    write_folder(make_dataset(n_per_class=2), tmp_path)
    buffer = io.BytesIO()
    Image.new("L", (400, 400)).save(buffer, "PNG")
    (tmp_path / "class0" / "bomb.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(UndoorError, match="more pixels than an image may have"):
        undoor.read(tmp_path)


def test_large_sets_are_mapped_from_a_file(monkeypatch, tmp_path, dataset):
    write_parquet(dataset, tmp_path / "x.parquet")
    monkeypatch.setattr("undoor.data.dataset.MEMORY_BUDGET", 1000)
    read = undoor.read(tmp_path / "x.parquet")
    assert isinstance(read.images, np.memmap)
    assert np.array_equal(read.images, dataset.images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no sub-folder with images"),
        (lambda p: p.write_text("x"), "is no image set undoor can read"),
        (lambda p: p.with_suffix(".parquet").write_text("x"), "is not whole Parquet"),
        (lambda p: p.with_suffix(".npz").write_text("x"), "is no .npz of plain arrays"),
        (lambda p: np.savez(p.with_suffix(".npz"), images=np.zeros((2, 4, 4))), "it must hold images and labels"),
        (
            lambda p: np.savez(p.with_suffix(".npz"), images=np.zeros((2, 4, 4)), labels=np.arange(2)),
            "images are float64",
        ),
        (
            lambda p: np.savez(p.with_suffix(".npz"), images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, -1])),
            "label -1 of sample 1 is outside",
        ),
    ],
)
def test_input_that_cannot_be_read_is_an_error_of_one_line(tmp_path, make, message):
    path = tmp_path / "data"
    make(path)
    written = next((p for p in tmp_path.iterdir()), path)
    with pytest.raises(UndoorError, match=message) as raised:
        undoor.read(written)
    assert "\n" not in str(raised.value)
