"""Makes image sets on disk."""

from undoor.safe.images import encode_png


def write_folder(dataset, root):
    """Write a data set as a folder with one sub-folder of PNG files per class; return the folder."""
    for image, label, name in zip(dataset.images, dataset.labels, dataset.ids, strict=True):
        file = root / dataset.class_names[label] / f"{int(name):03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(image))
    return root
