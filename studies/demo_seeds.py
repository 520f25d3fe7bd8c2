"""The demonstration with five seeds, beside random removal and perfect removal.

    python -m studies.demo_seeds

writes results/demo/seeds.json, the table in README.md and the picture above it.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from studies.shared import RATES, ROOT, Study, cell
from tools.marked import write_marked
from undoor.attacks import poison
from undoor.data.readers import read
from undoor.experiments.demo import COUNT, EPOCHS, SIZE, SOURCE, TARGET, Demo, demo
from undoor.experiments.measure import measure
from undoor.experiments.report.tables import markdown
from undoor.filters import Average
from undoor.findings.metrics import detection
from undoor.findings.provenance import versions
from undoor.networks.recipes import recipe
from undoor.networks.training import train

STUDY = Study(ROOT / "results" / "demo", file="seeds.json")
DOCUMENT = ROOT / "README.md"
MARKS = ("<!-- demo table: written by `make bench` -->", "<!-- end of demo table -->")
SEEDS = range(5)

SHOWN = 12
"""Images in the picture."""
CELL = 18
"""Pixels between the images of the picture; an image of the digits has 16."""
ENLARGED = 5


def controls(result: Demo, seed: int) -> list[dict]:
    """Retrain without as many random images as were flagged, and without exactly the poisoned images."""
    digits, test = read("digits"), read("digits", split="test")
    poisoned = poison(digits, result.attack)
    n, flagged = len(poisoned), int(result.findings.flagged.sum())
    at_random = np.isin(np.arange(n), np.random.default_rng((seed, 2)).choice(n, flagged, replace=False))
    rows = []
    for name, removed in (("random removal", at_random), ("perfect removal", poisoned.truth.poisoned)):
        truth = detection(removed, removed.astype(float), poisoned.labels, poisoned.truth.poisoned)
        after = measure(train(poisoned.take(~removed), recipe(epochs=EPOCHS, seed=seed)), test, result.attack)
        rows.append({"defense": name, "seed": seed, "before": result.before, "after": after, "truth": truth})
    return rows


def run() -> dict:
    """Run the demonstration and its controls with every seed."""
    rows = []
    for seed in SEEDS:
        result = demo(seed=seed)
        if seed == SEEDS[0]:
            write_picture(result, ROOT / "docs" / "flagged-cluster.png")
        rows.append(
            {
                "defense": "cluster impurity",
                "seed": seed,
                "before": result.before,
                "after": result.after,
                "truth": result.findings.truth,
                "seconds": result.summary()["seconds"],
            }
        )
        rows += controls(result, seed)
        print(f"seed {seed}: {result.findings.truth}", flush=True)
    attack = {"count": COUNT, "size": SIZE, "source": SOURCE, "target": TARGET}
    data = {"data": "digits", "images": len(read("digits")), "epochs": EPOCHS}
    return {"attack": attack | data, "versions": versions(), "threads": torch.get_num_threads(), "rows": rows}


def table(content: dict) -> str:
    """Return the results as a Markdown table with a caption."""
    values = {
        **{heading: ("truth", rate) for rate, heading in RATES.items()},
        "ASR before": ("before", "attack_success_rate"),
        "ASR after": ("after", "attack_success_rate"),
        "accuracy before": ("before", "clean_accuracy"),
        "accuracy after": ("after", "clean_accuracy"),
    }
    names = list(dict.fromkeys(row["defense"] for row in content["rows"]))
    lines = [
        [
            heading,
            *(cell((row[part][value] for row in content["rows"] if row["defense"] == name), 3) for name in names),
        ]
        for heading, (part, value) in values.items()
    ]
    attack = content["attack"]
    seeds = len({row["seed"] for row in content["rows"]})
    caption = (
        f"`undoor demo` with {seeds} seeds, median (lowest–highest): {attack['count']} poisoned images of class "
        f"{attack['source']} with a one-pixel trigger of size {attack['size']}, labelled {attack['target']}, are added "
        f"to {attack['images']} clean {attack['data']}; {attack['epochs']} epochs, torch "
        f"{content['versions']['torch']}, {content['threads']} threads. ASR is the attack success rate. `make bench` "
        "makes this table."
    )
    return f"{markdown(['', *names], lines)}\n\n{caption}"


def write_picture(result: Demo, path: Path) -> None:
    """Draw some flagged images above their filtered versions, enlarged."""
    poisoned = poison(read("digits"), result.attack)
    rows = np.flatnonzero(result.findings.flagged)
    rows = rows[np.linspace(0, len(rows) - 1, SHOWN).astype(int)]
    images = poisoned.images[rows]
    filtered = (Average()(torch.from_numpy(images).float() / 255) * 255).round().to(torch.uint8).numpy()
    sheet = np.full((2 * CELL, SHOWN * CELL), 255, np.uint8)
    for line, pictures in enumerate((images, filtered)):
        for column, pixels in enumerate(pictures):
            top, left = CELL * line + 1, CELL * column + 1
            sheet[top : top + 16, left : left + 16] = pixels[0]
    size = (SHOWN * CELL * ENLARGED, 2 * CELL * ENLARGED)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(path)


def main() -> None:
    content = run()
    STUDY.write(content)
    write_marked(DOCUMENT, MARKS, table(content))
    print(table(content))


if __name__ == "__main__":
    main()
