"""What a user writes, and what is said when it cannot be meant."""

import pytest
import yaml

from mpsim.errors import MpsimError, ScenarioError
from mpsim.spec import reader
from mpsim.spec.yaml_text import parse_yaml

GOOD = {
    "model": {"layers": 8, "hidden": 64, "heads": 4, "vocab": 100},
    "cluster": {
        "device": {
            "memory": "80 GiB",
            "memory_bandwidth": "2 TB/s",
            "peak": {"bf16": "312 TFLOP/s", "fp32": "19.5 TFLOP/s"},
        },
        "node": {
            "devices": 4,
            "link": {"kind": "nvlink", "bandwidth": "300 GB/s", "latency": "3 us"},
        },
    },
    "plan": {"pipeline": 4},
    "training": {"global_batch": 16, "sequence": 128},
}


def complaint(**overrides):
    """What is said about the good scenario with some fields replaced."""
    with pytest.raises(ScenarioError) as caught:
        reader.build(GOOD, {path.replace("__", "."): value for path, value in overrides.items()})
    assert caught.value.exit_code == 2
    return str(caught.value)


MESSAGES = [
    ({"plan__pipelin": 4}, "plan.pipelin: unknown field; did you mean 'pipeline'?"),
    ({"modle": "gpt3"}, "modle: unknown field; did you mean 'model'?"),
    (
        {"cluster__node__link__bandwith": "3 GB/s"},
        "cluster.node.link.bandwith: unknown field; did you mean 'bandwidth'?",
    ),
    ({"cluster__device__peak__bf61": "3 TFLOP/s"}, "cluster.device.peak.bf61: input should be 'fp"),
    ({"model__heds": 4}, "model.heds: unknown field; did you mean 'heads'?"),
    (
        {"cluster__device__memory": 80},
        "cluster.device.memory: '80' has no unit; write it with its unit, as in '80 GiB'",
    ),
    (
        {"cluster__device__memory": "80"},
        "cluster.device.memory: '80' has no unit; write it with its unit, as in '80 GiB'",
    ),
    (
        {"cluster__device__memory": "80 s"},
        "cluster.device.memory: '80 s' is not in units of B; "
        "write it with its unit, as in '80 GiB'",
    ),
    (
        {"cluster__device__memory": "80 GiBB"},
        "cluster.device.memory: '80 GiBB' is not a quantity; "
        "write it with its unit, as in '80 GiB'",
    ),
    (
        {"cluster__device__memory": "-80 GiB"},
        "cluster.device.memory: must be more than zero, not -80 GiB",
    ),
    (
        {"cluster__device__memory": "0 B"},
        "cluster.device.memory: must be more than zero, not 0 B",
    ),
    (
        {"cluster__device__memory": "inf B"},
        "cluster.device.memory: 'inf B' is not a finite number",
    ),
    (
        {"cluster__node__link__latency": "-1 us"},
        "cluster.node.link.latency: must be zero or more, not -1 us",
    ),
    (
        {"plan__pipeline": 3},
        "plan: tensor (1) x pipeline (3) x data (1) = 3 devices, but the cluster has 4",
    ),
    (
        {"plan": {"tensor": 4, "pipeline": 1}, "model__heads": 2},
        "plan.tensor: 4 does not divide the 2 heads; use one of 1, 2",
    ),
    (
        {"plan": {"data": 4}, "training__global_batch": 18},
        "training.global_batch: 18 is not a multiple of microbatch (1) x data (4) = 4; "
        "use 16 or 20",
    ),
    (
        {"model__layers": 3},
        "plan: pipeline (4) x chunks (1) = 4 stages, but the model has 3 layers",
    ),
    (
        {"training__precision": "fp8"},
        "training.precision: device has no fp8 rate; it has bf16, fp32",
    ),
    ({"training__global_batch": float("nan")}, "must be a finite number, not nan"),
    ({"training__global_batch": float("inf")}, "must be a finite number, not inf"),
    (
        {"training__global_batch": 0},
        "training.global_batch: input should be greater than or equal to 1, not 0",
    ),
    (
        {"training__global_batch": -4},
        "training.global_batch: input should be greater than or equal to 1, not -4",
    ),
    ({"training__global_batch": True}, "expected a number, not true or false"),
    (
        {"model__hidden": 65},
        "model: hidden (65) is not a multiple of heads (4); "
        "give head_dim where heads are not hidden / heads wide",
    ),
    (
        {"plan": {"pipeline": 4, "partition": [4, 4]}},
        "plan: partition lists 2 stages, but pipeline (4) x chunks (1) = 4",
    ),
    ({"cluster__nodes": 2, "plan__data": 2}, "cluster: 2 nodes need a 'network' between them"),
    (
        {"plan": {"pipeline": 4, "sequence_parallel": True}},
        "plan: sequence_parallel needs tensor parallelism (tensor > 1)",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES)
def test_what_cannot_be_meant_is_told_with_place_and_remedy(overrides, message):
    assert message in complaint(**overrides)


def test_all_complaints_are_told_at_once():
    text = complaint(plan__pipelin=4, training__steps=0, cluster__device__memory=1)
    assert len(text.splitlines()) == 3


def test_unknown_names_of_the_zoo_get_a_near_miss():
    assert "did you mean 'a100-sxm-80gb'" in complaint(cluster__device="a100-sxm-80g")
    assert "did you mean 'gpt3-175b'" in complaint(model="gpt3-175")


def test_a_zoo_entry_can_be_named_built_on_and_overridden():
    built = reader.build(
        {
            **GOOD,
            "cluster": {"base": "dgx-a100-80gb", "nodes": 1},
            "plan": {"tensor": 4, "data": 2},
        },
        {"cluster.node.link.bandwidth": "100 GB/s"},
    )
    assert built.cluster.node.link.bandwidth == 100e9
    assert built.cluster.device.name == "a100-sxm-80gb"
    assert built.cluster.devices == 8


def test_the_later_override_wins_over_file_and_zoo():
    built = reader.build(GOOD, {"plan.chunks": 2, "cluster.device": "h100-sxm-80gb"})
    assert built.plan.chunks == 2
    assert built.cluster.device.name == "h100-sxm-80gb"


def test_a_scenario_written_as_yaml_reads_back_equal():
    built = reader.build(GOOD, {"plan.recompute": "full", "training.gradient_type": "fp32"})
    again = reader.build(yaml.safe_load(reader.to_yaml(built)))
    assert again == built


def test_variants_override_dotted_and_nested_fields(tmp_path):
    file = tmp_path / "v.yaml"
    variants = {"deep": {"plan.chunks": 2}, "wide": {"plan": {"pipeline": 2, "data": 2}}}
    file.write_text(yaml.safe_dump({**GOOD, "variants": variants}))
    base, deep, wide = reader.load_variants(file)
    assert (base.variant, deep.variant, wide.variant) == ("base", "deep", "wide")
    assert deep.plan.chunks == 2
    assert (wide.plan.pipeline, wide.plan.data) == (2, 2)


def test_a_wrong_variant_is_told_by_its_name(tmp_path):
    file = tmp_path / "v.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "variants": {"odd": {"plan.pipeline": 3}}}))
    with pytest.raises(ScenarioError, match=r"variants\.odd: plan: tensor"):
        reader.load_variants(file)


def test_a_file_can_build_on_another(tmp_path):
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "above.yaml").write_text("base: below.yaml\ntraining: {global_batch: 32}\n")
    built = reader.load(tmp_path / "above.yaml")
    assert built.training.global_batch == 32
    assert built.training.sequence == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML: line 2, column 1: did not find expected"),
        ("a: 1\na: 2", "line 2: 'a' stands already in line 1"),
        ("- 1", "a scenario is a mapping"),
        ("a: &a [*a]", "an alias holds itself"),
        ("\x00", "is not YAML"),
        ("{" * 5000, ""),
    ],
)
def test_text_that_is_no_scenario_is_refused(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(MpsimError, match=r"bad\.yaml") as caught:
        reader.load(file)
    assert message in str(caught.value)


def test_a_bomb_of_aliases_is_refused_before_it_is_written_out():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ScenarioError, match="once its aliases are written out"):
        parse_yaml("\n".join(lines), where="bomb.yaml")


def test_a_huge_file_is_refused_unread(tmp_path):
    file = tmp_path / "huge.yaml"
    with file.open("wb") as handle:
        handle.truncate(100 * 2**20)
    with pytest.raises(ScenarioError, match=r"huge\.yaml: 100 MiB is no scenario"):
        reader.load(file)


def test_a_missing_file_names_the_nearest_shipped_one():
    with pytest.raises(ScenarioError, match=r"gpt3_fp23\.yaml: no such file; did you mean 'gpt3_"):
        reader.load("gpt3_fp23.yaml")


def test_a_folder_and_binary_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="is a folder"):
        reader.load(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ScenarioError, match="is not text"):
        reader.load(tmp_path / "b.yaml")


@pytest.mark.parametrize("text", ["plan.pipeline", "=4", ""])
def test_an_override_needs_path_and_value(text):
    with pytest.raises(ScenarioError, match="write it as path=value"):
        reader.parse_overrides([text])


def test_an_override_below_a_plain_value_or_beyond_a_list_is_refused():
    assert "is below a plain value" in complaint(plan__pipeline__deep=1)
    text = complaint(variants=[1], variants__7__x=1)
    assert "'7' is not an index into the 1 entries" in text


def test_a_bare_name_is_found_among_the_shipped_scenarios(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reader.find("gpt3_fp32.yaml").name == "gpt3_fp32.yaml"
    assert reader.find("gpt3_fp32").name == "gpt3_fp32.yaml"


def test_an_override_that_hides_a_variants_field_is_told(tmp_path):
    file = tmp_path / "v.yaml"
    variants = {"deep": {"plan": {"chunks": 2}}, "other": {"plan.recompute": "full"}}
    file.write_text(yaml.safe_dump({**GOOD, "variants": variants}))
    overrides = ["plan.chunks=1", "training.sequence=64"]
    base = reader.load(file, overrides)
    assert reader.shadowed(base, overrides) == [
        "--set plan.chunks also replaces what variant 'deep' sets"
    ]


def test_a_schedule_file_is_meant_beside_the_scenario(tmp_path):
    (tmp_path / "mine.csv").write_text("0F0,0B0\n")
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "plan": {"pipeline": 4, "schedule": "mine.csv"}}))
    assert reader.load(file).plan.schedule == str(tmp_path / "mine.csv")


def test_a_field_without_its_part_names_the_part():
    assert "did you mean 'plan.pipeline'?" in complaint(pipeline=4)


def test_an_unknown_layer_gets_a_near_miss():
    layers = [{"type": "linear", "inputs": 8, "outputs": 8}, {"type": "rleu"}]
    text = complaint(model={"input": [8], "network": layers}, plan__pipeline=1)
    assert "model.network.1.type: no 'rleu'; did you mean 'relu'?" in text
