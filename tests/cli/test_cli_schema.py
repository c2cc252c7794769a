"""The published schemas: as the code has them, and true of what infergy writes."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.schemas import RENAMED, SCHEMAS, make_schema
from raising import raises

DATA = Path(str(resources.files("infergy"))) / "data"


def published(name: str) -> Draft202012Validator:
    content = json.loads((DATA / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


def printed(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_file_is_what_the_code_says(name: str) -> None:
    assert published(name).schema == make_schema(name), (
        f"the format changed: raise its version if old files no longer read, then: "
        f"infergy list schemas {name} > src/infergy/data/schemas/{name}.json"
    )
    assert printed("list", "schemas", name) == make_schema(name)


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_schema_is_rejected_with_its_new_name(name: str) -> None:
    assert RENAMED[name] in SCHEMAS
    with raises("retired-command", instead=f"infergy list schemas {RENAMED[name]}"):
        printed("list", "schemas", name)


def test_a_study_as_json_is_a_grid() -> None:
    published("grid").validate(printed("list", "studies", "paper-bins", "--json"))


def test_every_format_is_published() -> None:
    assert {path.stem for path in (DATA / "schemas").glob("*.json")} == set(SCHEMAS)


@pytest.mark.slow
def test_shipped_rows_are_measurements() -> None:
    validator = published("measurement")
    for path in sorted((DATA / "tables").rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            validator.validate(json.loads(line))


@pytest.mark.slow
def test_shipped_studies_are_grids_and_their_plans_plans() -> None:
    for path in sorted((DATA / "studies").glob("*.toml")):
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
        published("grid").validate(grid)
        if not grid.get("needs"):
            published("plan").validate(printed("measure", path.stem, "--dry-run", "--json"))
        if not grid.get("needs") and "quick" in grid:
            published("plan").validate(printed("measure", path.stem, "--quick", "--dry-run", "--json"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("estimate", ("estimate", "azure-code-2023")),
        ("ceiling", ("estimate", "azure-code-2023", "--bins", "paper", "--method", "ceiling", "--ideal", "roofline")),
        ("trace", ("trace", "azure-code-2023")),
        ("trace", ("trace", "task:imdb", "--batch", "8")),
        ("estimate", ("estimate", "task:translation")),
        ("histogram", ("trace", "task:generation", "--bins", "powers-of-two")),
        ("studies", ("list", "studies")),
        ("histogram", ("trace", "azure-code-2023", "--bins", "powers-of-two")),
        ("next", ("next", "azure-code-2023", "--requests", "50", "--gpu", "a100-80gb-sxm")),
        ("recommend", ("recommend", "azure-code-2023", "--requests", "50", "--tpot-p99", "20ms")),
        ("breakdown", ("breakdown", "azure-code-2023", "--requests", "50", "--all-at-once")),
        ("histogram", ("trace", "azure-code-2023", "--bins", "paper")),
        ("answers", ("trace", "azure-code-2023", "azure-conv-2023")),
    ],
)
def test_what_a_verb_prints_follows_its_schema(name: str, arguments: tuple[str, ...]) -> None:
    published(name).validate(printed(*arguments, "--json"))


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "grid"])
def test_a_file_of_another_format_or_version_does_not_pass(name: str) -> None:
    with pytest.raises(ValidationError):
        published(name).validate({"schema": f"infergy.{name}/0"})


def test_an_unknown_format_gives_the_nearest() -> None:

    with raises("unknown-name", kind="schema", name="estimates"):
        make_schema("estimates")
