"""The demonstration over five seeds, beside random and perfect removal.

Writes results/demo/seeds.json and the table in README.md; the picture there is made with it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from marked import write_marked
from undoor.attacks import poison
from undoor.data.readers import read
from undoor.experiments.demo import COUNT, EPOCHS, SIZE, SOURCE, TARGET, Demo, demo
from undoor.experiments.measure import measure
from undoor.filters import Average
from undoor.findings.metrics import detection
from undoor.findings.provenance import versions
from undoor.networks.recipes import recipe
from undoor.networks.training import train

ROOT = Path(__file__).parents[1]
SEEDS = range(5)
MARKS = ("<!-- demo table: written by `make bench` -->", "<!-- end of demo table -->")


def controls(result: Demo, seed: int) -> list[dict]:
    """Retrain without as many images drawn at random, and without exactly the poisoned ones."""
    digits, test = read("digits"), read("digits", split="test")
    poisoned = poison(digits, result.attack)
    n, flagged = len(poisoned), int(result.findings.flagged.sum())
    at_random = np.isin(np.arange(n), np.random.default_rng((seed, 2)).choice(n, flagged, replace=False))
    rows = []
    for name, mask in (("random removal", at_random), ("perfect removal", poisoned.truth.poisoned)):
        score = mask.astype(float)
        truth = detection(mask, score, poisoned.labels, poisoned.truth.poisoned)
        after = measure(train(poisoned.take(~mask), recipe(epochs=EPOCHS, seed=seed)), test, result.attack)
        rows.append({"defense": name, "seed": seed, "before": result.before, "after": after, "truth": truth})
    return rows


def run() -> dict:
    rows = []
    for seed in SEEDS:
        result = demo(seed=seed)
        if seed == SEEDS[0]:
            picture(result, ROOT / "docs" / "flagged-cluster.png")
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
        print(json.dumps(rows[-3]))
    attack = {
        "count": COUNT,
        "size": SIZE,
        "source": SOURCE,
        "target": TARGET,
        "data": "digits",
        "images": len(read("digits")),
        "epochs": EPOCHS,
    }
    return {"attack": attack, "versions": versions(), "threads": torch.get_num_threads(), "rows": rows}


def table(content: dict) -> str:
    """Return the results as a Markdown table: medians, with the lowest and highest in brackets."""

    def over_seeds(rows: list[dict], part: str, name: str) -> str:
        values = [row[part][name] for row in rows]
        return f"{np.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"

    columns = (
        ("TPR", "truth", "tpr"),
        ("FPR, all classes", "truth", "fpr_all_classes"),
        ("FPR, target class", "truth", "fpr_target_class"),
        ("AUROC", "truth", "auroc"),
        ("ASR before", "before", "attack_success_rate"),
        ("ASR after", "after", "attack_success_rate"),
        ("accuracy before", "before", "clean_accuracy"),
        ("accuracy after", "after", "clean_accuracy"),
    )
    names = list(dict.fromkeys(row["defense"] for row in content["rows"]))
    by_name = {name: [row for row in content["rows"] if row["defense"] == name] for name in names}
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for title, part, key in columns:
        lines.append(f"| {title} | {' | '.join(over_seeds(by_name[name], part, key) for name in names)} |")
    attack = content["attack"]
    seeds = len(by_name[names[0]])
    caption = (
        f"`undoor demo` over {seeds} seeds, median (lowest–highest): {attack['count']} poisoned images of size "
        f"{attack['size']} from class {attack['source']}, labelled {attack['target']}, "
        f"beside {attack['images']} clean {attack['data']}, "
        f"{attack['epochs']} epochs, "
        f"torch {content['versions']['torch']}, {content['threads']} threads. ASR is the attack's success rate. "
        "`make bench` makes this table."
    )
    return "\n".join([*lines, "", caption])


def picture(result: Demo, path: Path) -> None:
    """Draw twelve flagged images above their filtered twins, enlarged."""
    poisoned = poison(read("digits"), result.attack)
    rows = np.flatnonzero(result.findings.flagged)
    rows = rows[np.linspace(0, len(rows) - 1, 12).astype(int)]
    images = poisoned.images[rows]
    twins = (Average()(torch.from_numpy(images).float() / 255) * 255).round().to(torch.uint8).numpy()
    sheet = np.full((2 * 18, 12 * 18), 255, np.uint8)
    for line, pictures in enumerate((images, twins)):
        for column, pixels in enumerate(pictures):
            sheet[18 * line + 1 : 18 * line + 17, 18 * column + 1 : 18 * column + 17] = pixels[0]
    path.parent.mkdir(exist_ok=True)
    large = Image.fromarray(sheet).resize((12 * 18 * 5, 2 * 18 * 5), Image.Resampling.NEAREST)
    large.save(path)


def write_table(content: dict) -> None:
    write_marked(ROOT / "README.md", MARKS, table(content))


if __name__ == "__main__":
    content = run()
    out = ROOT / "results" / "demo" / "seeds.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_table(content)
    print(table(content))
