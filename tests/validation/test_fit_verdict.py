"""Whether a run is said to fit: what the record states decides, what it leaves open does not."""

import pytest

from mpsim.validation.predict import compare
from mpsim.validation.records import Record

GIB = 2**30


def record(layers: int, *, microbatch=1, recompute="none", measured=None, **plan) -> Record:
    """A decoder on one H100 of 80 GB; 18 B a parameter, about 0.23 G parameters a layer."""
    return Record.model_validate(
        {
            "id": "r",
            "model": {
                "name": "m", "family": "llama", "layers": layers, "hidden": 4096, "heads": 32,
                "vocab": 32000, "tied_embeddings": True, "position": "rope", "bias": False,
                "gated_mlp": True, "ffn": 14336, "kv_heads": 32,
            },
            "cluster": {
                "device": "h100-sxm-80gb", "devices": 1, "devices_per_node": 8,
                "intra_node": "nvlink4", "inter_node": "none",
            },
            "plan": {
                "tensor": 1, "pipeline": 1, "chunks": 1, "context": 1, "data": 1,
                "schedule": "none", "zero": 0, "recompute": recompute, "attention": "flash",
                "precision": "bf16", **plan,
            },
            "training": {"global_batch": 16, "microbatch": microbatch, "sequence": 4096},
            "measured": measured or {},
        }
    )  # fmt: skip


@pytest.mark.parametrize(("layers", "fits"), [(6, True), (40, False)])
def test_stated_runs_are_said_to_fit_or_not(layers, fits):
    assert compare(record(layers)).fits == fits
    out_of_memory = compare(record(layers, measured={"oom": True}))
    assert out_of_memory.fits == fits  # what came of it changes nothing


@pytest.mark.parametrize("layers", [4, 8, 12, 14, 15, 16, 20, 32])
def test_the_figure_and_the_verdict_agree_where_nothing_was_measured(layers):
    row = compare(record(layers))
    assert row.memory is not None
    assert row.fits == (row.memory <= 79.1 * GIB + 0.1 * GIB)


def test_nothing_fits_without_a_microbatch():
    row = compare(record(6, microbatch=None, measured={"oom": True}))
    assert (row.fits, row.memory) == (None, None)
    assert row.as_json()["predicted_fits"] is None
    assert row.as_json()["predicted_peak_memory_bytes"] is None
    assert row.step_time is not None


def test_a_measured_peak_has_a_prediction_beside_it_in_any_case():
    row = compare(record(6, microbatch=None, measured={"peak_memory_bytes": 40e9}))
    assert row.fits is None
    assert row.memory == pytest.approx(40e9, rel=0.5)


def test_what_no_choice_fits_does_not_fit():
    assert compare(record(40, microbatch=None, recompute=None)).fits is False
    assert compare(record(40, recompute=None)).fits is False


def test_what_fits_without_recomputation_fits():
    assert compare(record(6, recompute=None)).fits is True


def test_what_hangs_on_recomputation_is_left_open():
    assert compare(record(12, microbatch=8)).fits is False
    assert compare(record(12, microbatch=8, recompute="full")).fits is True
    row = compare(record(12, microbatch=8, recompute=None))
    assert (row.fits, row.memory) == (None, None)


def test_an_unnamed_share_of_fsdp_layers_is_recomputed_until_they_fit():
    sharded = {"zero": 3, "compiled": True}
    row = compare(record(6, recompute="selective", **sharded))
    assert "tuned: plan.recompute_layers = 2" in row.assumptions
    named = compare(record(6, recompute="selective", recompute_modules=["per_op"], **sharded))
    assert not any("recompute_layers" in text for text in named.assumptions)
