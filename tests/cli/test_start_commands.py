"""``mpsim schema`` and ``mpsim init``: what they write is what mpsim reads."""

import json

import pytest
import yaml
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.spec.reader import load_variants
from mpsim.spec.scenario import Scenario


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def schema():
    return json.loads(run("schema").stdout)


def test_the_schema_is_one(schema):
    assert (schema["type"], schema["title"]) == ("object", "Scenario")
    assert set(schema["required"]) == {"model", "cluster", "training"}


def test_every_field_of_the_schema_has_a_description(schema):
    for name, entry in schema["$defs"].items():
        for field, declared in entry.get("properties", {}).items():
            # the tag of a kind of layer says itself what it is
            assert field == "type" or declared.get("description"), f"{name}.{field}"


def test_unknown_fields_are_refused_by_the_schema(schema):
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["PlanSpec"]["additionalProperties"] is False


def test_the_schema_goes_to_a_file_too(schema, tmp_path):
    path = tmp_path / "scenario.schema.json"
    result = run("schema", "--out", path)
    assert (result.exit_code, result.stderr) == (0, f"wrote {path}\n")
    assert json.loads(path.read_text()) == schema


def test_the_starter_is_a_scenario_that_runs(tmp_path):
    path = tmp_path / "mine.yaml"
    assert run("init", path).exit_code == 0
    scenarios = load_variants(path)
    assert [one.variant for one in scenarios] == ["base", *scenarios[0].variants]
    assert all(isinstance(one, Scenario) for one in scenarios)
    result = run("scenario", path)
    assert result.exit_code == 0, result.output
    assert "FITS" in result.stdout


def test_the_starter_comments_on_its_fields():
    text = run("init").stdout
    assert text.count("#") >= 12
    assert set(yaml.safe_load(text)) >= {"name", "model", "cluster", "plan", "training", "variants"}


def test_a_file_that_exists_is_kept_unless_forced(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    result = run("init", path)
    message = f"error: {path}: exists already; use --force to overwrite it\n"
    assert (result.exit_code, result.stderr) == (2, message)
    assert path.read_text() == "precious"
    assert run("init", path, "--force").exit_code == 0
    assert path.read_text() != "precious"


@pytest.mark.parametrize(
    "arguments", [("init", "no/such/folder/mine.yaml"), ("schema", "--out", "/")]
)
def test_a_place_that_cannot_be_written_is_named(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert arguments[-1] in result.stderr
