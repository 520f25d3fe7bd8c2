"""What stands in the documents is what the committed results say."""

import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

import undoor
from marked import marked

ROOT = Path(__file__).parents[1]


def test_the_readmes_table_is_the_one_of_the_results():
    benchmark = import_module("demo_seeds")
    content = json.loads((ROOT / "results" / "demo" / "seeds.json").read_text(encoding="utf-8"))
    written = marked(ROOT / "README.md", benchmark.MARKS)
    assert written == benchmark.table(content)


def test_the_cluster_pages_tables_are_those_of_the_results():
    benchmark = import_module("cluster_arithmetic")
    gpu = benchmark.read(benchmark.GPU) if benchmark.GPU.exists() else None
    written = marked(benchmark.PAGE, benchmark.MARKS)
    assert written == benchmark.tables(benchmark.read(benchmark.CPU), gpu, benchmark.DOLLARS_A_GPU_HOUR)


def test_the_page_of_remarks_is_made_of_the_results():
    benchmark = import_module("remarks")
    assert (benchmark.OUT / "README.md").read_text(encoding="utf-8") == benchmark.page(benchmark.read_results())


def test_the_false_alarms_are_those_of_the_results():
    benchmark = import_module("false_alarms")
    content = json.loads((benchmark.OUT / "results.json").read_text(encoding="utf-8"))
    assert (benchmark.OUT / "README.md").read_text(encoding="utf-8") == benchmark.page(content)
    written = marked(benchmark.PAGE, benchmark.MARKS)
    assert written == benchmark.block(content)


def test_the_attackers_are_those_of_the_results():
    benchmark = import_module("adaptive")
    content = benchmark.read_results()
    assert (benchmark.OUT / "README.md").read_text(encoding="utf-8") == benchmark.page(content)
    written = marked(benchmark.PAGE, benchmark.MARKS)
    assert written == benchmark.block(content)
    assert {row["attacker"] for row in content["rows"]} == set(benchmark.ATTACKERS)


def test_the_bounds_are_those_of_the_code():
    benchmark = import_module("bounds")
    written = marked(benchmark.PAGE, benchmark.MARKS)
    assert written == benchmark.table()


def test_the_interval_of_no_false_alarm_is_the_closed_form():
    low, high = import_module("false_alarms").interval(0, 23)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 23))


def test_the_arithmetic_is_the_constants_times_the_images():
    benchmark = import_module("cluster_arithmetic")

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
        rows = dict(
            line.strip("| ").split(" | ", 1)
            for line in benchmark.tables(cpu, measured, 3.0).splitlines()
            if " | " in line
        )
        first = {name: told.split(" | ")[0] for name, told in rows.items()}
        assert first["pass on one core"] == "60.0 min"
        assert first["evidence, 10 classes"] == "592 MB"
        assert first["tasks of the pass, 4096 images each"] == "245"
        assert first["driver: giving out shards, taking evidence"] == "3.9 s"
        assert first["all on 1000 cores, after the driver has read on one"] == "8.4 min"
        assert first["all on 1000 cores, where tasks read their shards"] == "5.0 s"
        assert first["pass on one GPU"] == seconds
        assert first["pass, at $3.00 a GPU hour"] == dollars


def test_the_page_about_cluster_impurity_says_what_its_pictures_show():
    benchmark = import_module("pictures")
    told = json.loads((benchmark.PICTURES / "numbers.json").read_text(encoding="utf-8"))
    written = marked(benchmark.PAGE, benchmark.MARKS)
    assert written == benchmark.table(told)
    drawn = {f"{draw.__name__}.svg" for draw in benchmark.DRAWN}
    assert {path.name for path in benchmark.PICTURES.glob("*.svg")} == drawn


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
    missing = [name for name in undoor.__all__ if name != "__version__" and getattr(undoor, name) not in found]
    assert not missing
