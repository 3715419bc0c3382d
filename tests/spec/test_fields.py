"""The page of all fields is that of the declarations, and says something of each."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.simulation import simulate
from mpsim.spec.fields import fields_page
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.spec.reader import build

PAGE = Path(__file__).parents[2] / "docs" / "scenario.md"


def test_the_page_in_the_docs_is_made_of_the_declarations():
    """`mpsim schema --markdown` after its `## Fields` line."""
    result = CliRunner().invoke(main, ["schema", "--markdown"])
    assert result.exit_code == 0
    written = PAGE.read_text(encoding="utf-8").partition("Made by `mpsim schema --markdown`.\n\n")
    assert written[2].strip() == result.output.strip()


@pytest.mark.parametrize("declaration", [PlanSpec, TrainingSpec])
def test_every_field_has_its_row_with_a_meaning(declaration):
    lines = fields_page().splitlines()
    for name, field in declaration.model_fields.items():
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        words = " ".join(str(field.description).split()).replace("``", "`")
        assert any(words[:40] in row for row in rows), name


@pytest.mark.parametrize(
    ("framework", "fields", "bytes_each"),
    [
        ("megatron", {}, 2 + 2 + 4 + 8),
        ("fsdp", {}, 4 + 4 + 8),  # no copy of 16 bits is kept, none is a master
        ("torch", {"training.parameter_type": "fp32"}, 4 + 4 + 8),
        ("torch", {}, 2 + 2 + 4 + 8),  # DeepSpeed
    ],
)
def test_the_frameworks_of_the_page_keep_what_they_keep(framework, fields, bytes_each):
    tree = {
        "model": {"layers": 2, "hidden": 1024, "heads": 8, "vocab": 4096},
        "cluster": {"base": "dgx-a100-80gb", "nodes": 1},
        "plan": {"data": 8},
        "training": {"global_batch": 8, "sequence": 512, "framework": framework},
    }
    report = simulate(build(tree, fields), engine="fast")
    held = report.fullest.memory.at_peak
    state = ("parameters", "gradients", "master_weights", "optimizer_state")
    parameters = held["parameters"] / (4 if framework == "fsdp" or fields else 2)
    assert sum(held.get(name, 0) for name in state) == pytest.approx(bytes_each * parameters)
