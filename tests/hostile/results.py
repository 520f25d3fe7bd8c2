"""Hostile findings, attacks and results of experiments."""

import json
from pathlib import Path

import pandas as pd

from hostile import Case, add, case, pipe, sparse
from hostile.images import encoded

REPORT = ("report", "findings", "--data", "photos")
CLEAN = ("clean", "photos", "--findings", "findings", "--out", "out")
UNREAD = "the findings in findings cannot be read"


def summary(change):
    """Return the function of a case: it writes the good findings after a change of their summary."""

    def make(root: Path) -> tuple[str, ...]:
        path = root / "findings" / "summary.json"
        fields = json.loads(path.read_text())
        changed = change(fields)
        path.write_text(changed if isinstance(changed, str) else json.dumps(fields))
        return REPORT

    return make


for name, (change, message) in {
    "findings summed up by text": (lambda fields: "x", UNREAD),
    "findings summed up by a list": (lambda fields: "[]", UNREAD),
    "findings summed up too deeply": (lambda fields: '{"a":' * 10**5, "nested too deeply"),
    "findings with settings nested deeply": (
        lambda fields: fields.update(settings=json.loads('{"a":' * 50 + "1" + "}" * 50)),
        "nested too deeply",
    ),
    "findings with a threshold of text": (lambda fields: fields.update(threshold="x"), "the summary's threshold"),
    "findings with a seed of text": (lambda fields: fields.update(seed="x"), "the summary's seed"),
    "findings with settings of text": (lambda fields: fields.update(settings="x"), "the summary's settings"),
    "findings with seconds of text": (
        lambda fields: fields.update(seconds={"evidence": "x"}),
        "the summary's seconds",
    ),
    "findings with versions of numbers": (lambda fields: fields.update(versions=7), "the summary's versions"),
    "findings with a truth of text": (lambda fields: fields.update(truth={"tp": "x"}), "the summary's truth"),
    "findings without a defense": (lambda fields: fields.pop("defense") and None, UNREAD),
    "findings of other classes": (lambda fields: fields.update(class_names=["a", "b", "c"]), "are of other images"),
    "findings of classes for a terminal": (lambda fields: fields.update(class_names=["a", "b", "\x1b[31m"]), "control"),
    "findings of classes that are numbers": (lambda fields: fields.update(class_names=[1, 2, 3]), "is no text"),
    "findings of fewer classes": (lambda fields: fields.update(class_names=["a"]), "that is no class"),
    "findings with a filter that is code": (
        lambda fields: fields.update(image_filter="Average(size=__import__('os').system('echo ran > marker'))"),
        "no filter is called",
    ),
    "findings with settings for a terminal": (lambda fields: fields.update(settings={"a": "\x1b[31m"}), "control"),
}.items():
    add(name, Case(summary(change), message))


def samples(change, arguments=REPORT, table: str = "samples"):
    """Return the function of a case: it writes the good findings after a change of a table."""

    def make(root: Path) -> tuple[str, ...]:
        path = root / "findings" / f"{table}.parquet"
        frame = pd.read_parquet(path)
        changed = change(frame)
        (frame if changed is None else changed).to_parquet(path, index=False)
        return arguments

    return make


def with_id(name: str):
    """Return a change that gives the first sample an id."""
    return lambda frame: frame.__setitem__("id", [name, *frame["id"][1:]])


for title, name in {
    "findings that name a file above": "../secret.png",
    "findings that name a file far above": "../" * 12 + "etc/passwd",
    "findings that name an absolute file": "/etc/passwd",
    "findings that name a file by a detour": "class0/../class0/001.png",
    "findings that name a folder": "class0",
    "findings that name no file": "",
}.items():
    add(title, Case(samples(with_id(name), CLEAN), "scanned samples are not in photos"))

for title, (change, message) in {
    "findings that name files in several lines": (with_id("a\nb"), "control character"),
    "findings that name numbers": (lambda frame: frame.__setitem__("id", range(len(frame))), "column id"),
    "findings without names": (lambda frame: frame.drop(columns="id"), "no column id"),
    "findings without flags": (lambda frame: frame.drop(columns="flagged"), "no column flagged"),
    "findings flagged by text": (lambda frame: frame.__setitem__("flagged", "x"), "column flagged"),
    "findings with flags left out": (
        lambda frame: frame.__setitem__("flagged", frame["flagged"].astype("boolean").mask(frame.index == 0)),
        "lacks values",
    ),
}.items():
    add(title, Case(samples(change, CLEAN), message))

for title, (change, message) in {
    "findings with labels of no class": (lambda frame: frame.__setitem__("label", 10**9), "that is no class"),
    "findings with decisions below zero": (lambda frame: frame.__setitem__("predicted", -1), "that is no class"),
    "findings with labels of text": (lambda frame: frame.__setitem__("label", "x"), "column label"),
    "findings with scores that are no numbers": (
        lambda frame: frame.__setitem__("score", float("nan")),
        "samples.parquet",
    ),
    "findings with scores beyond all numbers": (lambda frame: frame.__setitem__("score", float("inf")), "not finite"),
    "findings of other images": (lambda frame: frame.iloc[1:], "are of other images"),
}.items():
    add(title, Case(samples(change), message))

for title, table, change, message in (
    ("clusters of no class", "clusters", lambda frame: frame.__setitem__("class", 77), "that is no class"),
    ("clusters without a size", "clusters", lambda frame: frame.drop(columns="size"), "no column size"),
    ("clusters that went to text", "clusters", lambda frame: frame.__setitem__("destinations", "x"), "column destin"),
    (
        "clusters that went to too few classes",
        "clusters",
        lambda frame: frame.__setitem__("destinations", [[1]] * len(frame)),
        "another number of classes",
    ),
    ("curves of text", "curves", lambda frame: frame.__setitem__("criterion", "x"), "column criterion"),
    ("curves of no class", "curves", lambda frame: frame.__setitem__("class", -1), "that is no class"),
):
    add(title, Case(samples(change, REPORT, table), message))


@case("no whole findings")
def findings_summed_up_by_a_pipe(root: Path):
    pipe(root / "findings" / "summary.json")
    return REPORT


@case("more than the")
def findings_summed_up_by_a_sparse_terabyte(root: Path):
    sparse(root / "findings" / "summary.json")
    return REPORT


@case("no regular file")
def findings_from_a_pipe(root: Path):
    pipe(root / "findings" / "samples.parquet")
    return CLEAN


@case(UNREAD)
def findings_of_text(root: Path):
    (root / "findings" / "samples.parquet").write_text("x")
    return CLEAN


@case("leads out of the folder")
def findings_that_name_a_link(root: Path):
    (root / "secret.png").write_bytes(encoded("PNG"))
    (root / "photos" / "class0" / "000.png").unlink()
    (root / "photos" / "class0" / "000.png").symlink_to("../../secret.png")
    return CLEAN


@case("scanned samples are not in photos.parquet")
def findings_that_name_rows_beyond_the_end(root: Path):
    samples(lambda frame: frame.__setitem__("id", [str(10**9 + k) for k in range(len(frame))]))(root)
    return ("clean", "photos.parquet", "--findings", "findings", "--out", "out")


# Attacks


def attack(change):
    """Return the function of a case: it writes the good attack after a change."""

    def make(root: Path) -> tuple[str, ...]:
        path = root / "attack.json"
        fields = json.loads(path.read_text())
        changed = change(fields)
        path.write_text(changed if isinstance(changed, str) else json.dumps(fields))
        options = ("--epochs", "1", "--test", "photos", "--out", "y.safetensors")
        return ("train", "photos", *options, "--attack", "attack.json")

    return make


def trigger(**fields):
    """Return a change of fields of the trigger."""
    return lambda described: described["trigger"].update(fields)


def changes(*values):
    """Return a change to a trigger of several pixels."""
    return lambda fields: fields.update(trigger={"kind": "Pixels", "changes": values})


NONE = "describes no attack"
for name, (change, message) in {
    "attack of text": (lambda fields: "x", NONE),
    "attack that is a list": (lambda fields: "[]", NONE),
    "attack nested deeply": (lambda fields: '{"a":' * 10**5, NONE),
    "attack of an unknown kind": (trigger(kind="os.system"), NONE),
    "attack without a trigger": (lambda fields: fields.pop("trigger") and None, NONE),
    "attack at half a row": (trigger(row=1.5), "give whole numbers"),
    "attack at a row of text": (trigger(row="x"), "give whole numbers"),
    "attack of no size": (trigger(size=float("nan")), "give a size from 0 to 1"),
    "attack far outside": (trigger(row=10**30), "lies outside images"),
    "attack with more than it has": (lambda fields: fields.update(code="x"), NONE),
    "attack on sources that are a number": (lambda fields: fields.update(sources=7), NONE),
    "attack on a class for a terminal": (lambda fields: fields.update(sources=["\x1b[31m"]), "control character"),
    "attack on a class that is not there": (lambda fields: fields.update(sources=["<b>"]), "there is no class"),
    "attack with a target of numbers": (lambda fields: fields.update(target=7), "is no text"),
    "attack on half an image": (lambda fields: fields.update(count=0.5), "whole numbers"),
    "attack of pixels at half a row": (changes([0.5, 1, 0, 0.1]), "count from 0"),
    "attack of pixels of lists": (changes([[1], 1, 0, 0.1]), "count from 0"),
    "attack of pixels far outside": (changes([10**30, 1, 0, 0.1]), "outside images"),
    "attack of no pixels": (changes(), "changes no pixel"),
}.items():
    add(name, Case(attack(change), message))


@case("no regular file")
def attack_from_a_pipe(root: Path):
    make = attack(lambda fields: None)
    arguments = make(root)
    pipe(root / "attack.json")
    return arguments


# Results of experiments

BENCH = ("bench", "quick", "--cells", "clean-s0", "--time-budget", "0.001s", "--stages", "victims", "--out", "store")


def stored(content: str | None):
    """Return the function of a case: it writes a result with this content, or a pipe instead of it."""

    def make(root: Path) -> tuple[str, ...]:
        folder = root / "store" / "work" / "victims"
        folder.mkdir(parents=True)
        if content is None:
            pipe(folder / "a.json")
        else:
            (folder / "a.json").write_text(content)
        return BENCH

    return make


for name, (content, message) in {
    "result nested deeply": ('{"a":' * 10**5, "nested too deeply"),
    "result of nothing": ("{}", "that undoor did not write"),
    "result from a pipe": (None, "no regular file"),
}.items():
    add(name, Case(stored(content), message))


@case("no regular file")
def notes_from_a_pipe(root: Path):
    (root / "store").mkdir()
    pipe(root / "store" / "notes.md")
    return BENCH
