"""The commands ``undoor scan`` and ``undoor clean``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from undoor.cli.options import (
    BatchSize,
    Data,
    EngineOptions,
    ExitZero,
    Layer,
    ModelOptions,
    Overwrite,
    ReadingOptions,
    Split,
    TrainingOptions,
    refuse_existing,
)
from undoor.cli.values import dimensions as parse_dimensions
from undoor.errors import UndoorError


def scan(
    data: Data,
    *,
    out: Annotated[Path, Option(help="Folder for the findings.")],
    model: Annotated[
        Path | None, Option(help="Weights of a network trained on DATA. By default one is trained, and kept in --out.")
    ] = None,
    image_filter: Annotated[
        str, Option("--filter", help="Image filter: average[:SIZE[:zero]], median, gaussian, noise or quantise.")
    ] = "average:2",
    decision: Annotated[
        str,
        Option(help="Which changed decisions count: confident (only confident ones) or plain (all, as in the paper)."),
    ] = "confident",
    threshold: Annotated[
        float | None, Option(help="Flag clusters of higher impurity. By default 0.15 if confident, 0.5 if plain.")
    ] = None,
    unconditioned: Annotated[
        bool, Option("--unconditioned", help="Count also images that the network does not decide as labelled.")
    ] = False,
    skip_single: Annotated[bool, Option("--skip-single", help="Skip classes that form a single cluster.")] = False,
    dimensions: Annotated[
        str, Option(help="Dimensions to cluster in: a number, few, all, or auto (few for small classes, else all).")
    ] = "auto",
    one_look: Annotated[
        bool, Option("--one-look", help="Do not look at unflagged classes a second time, in few dimensions.")
    ] = False,
    batch_size: BatchSize = 128,
    sarif: Annotated[Path | None, Option(help="Also write a SARIF file, for code-scanning services.")] = None,
    overwrite: Overwrite = False,
    exit_zero: ExitZero = False,
    network: ModelOptions,
    layer: Layer = None,
    training: TrainingOptions,
    reading: ReadingOptions,
    engine: EngineOptions,
) -> None:
    """Find poisoned images in DATA.

    Exits with 1 if something is flagged and 0 if nothing is. An interrupted scan continues when the same command is
    given again.

    Example: undoor scan photos --out findings --sarif findings.sarif
    """
    from undoor.cli import terminal
    from undoor.defenses.training_set import ClusterImpurity
    from undoor.evidence.shards import discard, kept_until_done
    from undoor.filters import parse_filter
    from undoor.findings.findings import refuse_findings
    from undoor.integrations import sarif_log
    from undoor.mixtures.sweep import MixtureSettings
    from undoor.networks.victims import fit_victim
    from undoor.networks.weights import require_same_classes
    from undoor.report.findings import write_findings
    from undoor.scanning import scan as run
    from undoor.storage.atomic import write_text

    h = parse_filter(image_filter)
    chosen_engine = engine.create()
    defense = ClusterImpurity(
        mixture=MixtureSettings(dimensions=parse_dimensions(dimensions)),  # type: ignore[arg-type] # auto or few
        second_look=not one_look,
        decision=decision,  # type: ignore[arg-type] # ClusterImpurity checks it
        threshold=threshold, conditioned=not unconditioned, skip_single=skip_single, seed=training.seed,
        workers=chosen_engine,
    )  # fmt: skip
    training.recipe()  # raises now if the preset is unknown, not after the images are read
    if not overwrite and (out / "summary.json").exists():
        discard(out / "evidence.part")  # left by a run that was killed after it had written everything
    refuse_findings(out, overwrite)
    if sarif is not None and sarif.exists() and not overwrite:
        raise UndoorError(f"{sarif} exists already; choose another --sarif or add --overwrite")
    classifier, class_names = (None, None) if model is None else network.load(model, layer)
    dataset = reading.read(data)
    require_same_classes(class_names, dataset.class_names, model)
    if classifier is None:
        with terminal.stages("train") as bar:
            victim = fit_victim(
                dataset, training.recipe(len(dataset)), out / "victim.safetensors", network.network,
                overwrite=overwrite, on_step=bar.training(),
            )  # fmt: skip
        classifier = network.classifier(victim, layer)
    with kept_until_done(out / "evidence.part") as folder, terminal.stages("evidence") as bar:
        findings = run(
            classifier, dataset, replace(defense, on_mixture=bar.counting("mixtures")), image_filter=h,
            batch_size=batch_size, folder=folder, engine=chosen_engine, on_batch=bar.counting("evidence"),
        )  # fmt: skip
        bar.begin("report")
        write_findings(findings, dataset, h, out, overwrite=overwrite)
    if sarif is not None:
        write_text(sarif, json.dumps(sarif_log(findings, data), indent=2, ensure_ascii=False) + "\n")
    terminal.print_result({**findings.summary(), "report": out / "report.html"})
    terminal.print_findings(findings)
    terminal.print_line(f"report: {out / 'report.html'}")
    if findings.verdict == "poisoned" and not exit_zero:
        raise typer.Exit(1)


def clean(
    data: Data,
    *,
    findings: Annotated[Path, Option(help="Folder that undoor scan wrote for DATA.")],
    out: Annotated[Path, Option(help="New folder for the images that are kept.")],
    drop: Annotated[
        Path | None, Option(help="File of image ids, one per line, to leave out instead of the flagged ones.")
    ] = None,
    split: Split = "train",
) -> None:
    """Write a copy of DATA without the images that were flagged.

    DATA itself is not changed. With --drop you choose the images yourself: the report can save a selection as such a
    file.

    Example: undoor clean photos --findings findings --out photos-clean
    """
    from undoor.cli import terminal
    from undoor.data.readers.subset import write_subset
    from undoor.findings.reading import read_ids, read_list

    refuse_existing(out)
    scanned, kept = read_ids(findings)
    if drop is not None:
        dropped = read_list(drop, scanned)
        kept = [name for name in scanned if name not in dropped]
    with terminal.counting_bar("write") as on_image:
        write_subset(data, scanned, kept, out, split, on_image)
    terminal.print_result({"out": out, "scanned": len(scanned), "kept": len(kept)})
    terminal.print_line(f"kept {len(kept)} of {len(scanned)} images\nwritten to {out}")
