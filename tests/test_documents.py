"""The documents say what the committed results and the code say."""

import json
import re
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, DocTestFinder, DocTestRunner
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import yaml

import undoor
from benchmarks import cluster_arithmetic, speed
from studies import adaptive, demo_seeds, false_alarms, remarks, smallest_cluster
from tools import bounds, pictures
from tools.marked import marked

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("study", [adaptive, remarks, false_alarms, smallest_cluster], ids=lambda study: study.__name__)
def test_the_page_of_a_study_is_made_of_its_results(study):
    assert (study.STUDY.folder / "README.md").read_text(encoding="utf-8") == study.page(study.STUDY.read())


@pytest.mark.parametrize("study", [adaptive, false_alarms], ids=lambda study: study.__name__)
def test_what_a_study_writes_into_a_document_is_made_of_its_results(study):
    assert marked(study.DOCUMENT, study.MARKS) == study.block(study.STUDY.read())


def test_every_attacker_is_measured():
    assert {row["attacker"] for row in adaptive.STUDY.read()["rows"]} == set(adaptive.ATTACKERS)


def test_the_table_in_the_readme_is_made_of_the_results():
    assert marked(demo_seeds.DOCUMENT, demo_seeds.MARKS) == demo_seeds.table(demo_seeds.STUDY.read())


def test_the_tables_about_clusters_are_made_of_the_results():
    read, GPU = cluster_arithmetic.read, cluster_arithmetic.GPU  # noqa: N806
    gpu = read(GPU) if GPU.exists() else None
    expected = cluster_arithmetic.tables(read(cluster_arithmetic.CPU), gpu, cluster_arithmetic.DOLLARS_PER_GPU_HOUR)
    assert marked(cluster_arithmetic.DOCUMENT, cluster_arithmetic.MARKS) == expected


def test_the_page_about_speed_is_made_of_the_results():
    rows = json.loads((speed.FOLDER / "results.json").read_text(encoding="utf-8"))
    assert (speed.FOLDER / "RESULTS.md").read_text(encoding="utf-8") == speed.page(rows)


def test_the_bounds_are_those_of_the_code():
    assert marked(bounds.DOCUMENT, bounds.MARKS) == bounds.table()


def test_the_interval_of_no_false_alarm_is_the_closed_form():
    low, high = false_alarms.interval(0, 23)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 23))


def test_the_arithmetic_is_the_constants_times_the_images():
    def constant(value):
        return {"median": value, "lowest": value, "highest": value}

    cpu = {
        "hardware": "a core",
        "versions": {"torch": "2"},
        "bytes_an_image": {"encoded": 300, "pixels": 3072, "evidence_10": 592, "evidence_1000": 8512},
        "decoding": {"seconds_an_image": constant(0.5e-3)},
        "pass": {"seconds_an_image": constant(3.6e-3)},
        "mixtures": {"seconds_an_image": constant(0.9e-3), "classes": 3, "images_a_class": 5000},
        "ray": {"version": "2", "seconds_a_task": constant(1e-3), "seconds_a_byte": constant(1e-9)},
    }
    gpu = {"hardware": "a GPU", "pass": {"seconds_an_image": constant(3.6e-5)}}
    for measured, seconds, dollars in ((None, "not measured", "not measured"), (gpu, "36.0 s", "$0.03")):
        text = cluster_arithmetic.tables(cpu, measured, 3.0)
        rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if " | " in line)
        million = {name: cells.split(" | ")[0] for name, cells in rows.items()}
        assert million["pass on one core"] == "60.0 min"
        assert million["evidence, 10 classes"] == "592 MB"
        assert million["tasks of the pass, 4096 images each"] == "245"
        assert million["driver: sending shards, receiving evidence"] == "3.9 s"
        assert million["everything on 1000 cores, after the driver has read on one"] == "8.4 min"
        assert million["everything on 1000 cores, if the tasks read their shards"] == "5.0 s"
        assert million["pass on one GPU"] == seconds
        assert million["pass, at $3.00 per GPU hour"] == dollars


def test_the_page_about_cluster_impurity_says_what_its_pictures_show():
    values = json.loads((pictures.PICTURES / "numbers.json").read_text(encoding="utf-8"))
    assert marked(pictures.DOCUMENT, pictures.MARKS) == pictures.table(values)
    drawn = {f"{draw.__name__}.svg" for draw in pictures.DRAWN}
    assert {path.name for path in pictures.PICTURES.glob("*.svg")} == drawn


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
]


def anchors(page):
    """Return the anchors of a page's headings, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    page = ROOT / document
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    used = set(re.findall(r"\]\[([^\]]+)\]", text))
    assert used == set(named)
    for link in [*re.findall(r"\]\(([^)\s]+)\)", text), *named.values()]:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        assert found.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(found), link


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = []
    for entry in site["nav"]:
        for content in entry.values():
            pages += [content] if isinstance(content, str) else [page for part in content for page in part.values()]
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    found = [resolve_name(name) for name in listed]
    assert not [name for name in EXPORTED if getattr(undoor, name) not in found]


EXPORTED = [name for name in undoor.__all__ if name != "__version__"]


def examples(name):
    """Return the doctests of an exported object and its methods."""
    found = DocTestFinder().find(getattr(undoor, name), name, extraglobs={"undoor": undoor, "np": np})
    return [doctest for doctest in found if doctest.examples]


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_name_has_an_example(name):
    shown_by = {"Guard": "Ada", "Inspection": "ReverseEngineering"}.get(name, name)
    assert shown_by in getattr(undoor, name).__doc__ or shown_by == name
    assert examples(shown_by)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_examples_of_an_exported_name_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = DocTestRunner(optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)
    output = []
    for doctest in examples(name):
        runner.run(doctest, out=output.append)
    assert not runner.failures, "".join(output)
