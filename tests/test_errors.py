"""Hints at what may have been meant."""

import pytest

from mpsim.errors import did_you_mean
from mpsim.spec.zoo import names


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("pipelin", ["tensor", "pipeline"], "; did you mean 'pipeline'?"),
        ("a100", ["a10", "a100-a", "b-a100"], "; did you mean 'a100-a'?"),
        ("a100", ["a10", "a100-a", "a100-b"], "; did you mean 'a100-a' or 'a100-b'?"),
        ("A100", ["a10", "a100-a", "A100-b", "a100-a"], "; did you mean 'a100-a' or 'A100-b'?"),
        ("abc", ["abc-1", "abc-2", "abc-3"], "; did you mean 'abc-1', 'abc-2' or 'abc-3'?"),
        ("x" * 3, [f"xxx-{i}" for i in range(8)][:8], "'xxx-6' or 'xxx-7'?"),
        ("x" * 3, [f"xxx-{i}" for i in range(9)], "'xxx-6', 'xxx-7', …?"),
        # one letter begins too many names to mean any of them
        ("p", ["pipeline", "precision"], ""),
        ("", ["pipeline"], ""),
        ("zzz", [], ""),
        # a shared ending makes nothing near
        ("nofile.yaml", ["imbalanced.yaml", "deep.yaml"], ""),
        ("imbalanced.yml", ["imbalanced.yaml", "deep.yaml"], "; did you mean 'imbalanced.yaml'?"),
        ("imbalance", ["imbalanced.yaml", "deep.yaml"], "; did you mean 'imbalanced.yaml'?"),
        ("embalanced.yaml", ["imbalanced.yaml", "d.yaml"], "; did you mean 'imbalanced.yaml'?"),
        # not every dot is an ending
        ("deep.yaml", ["deep.json", "dep.yaml"], "; did you mean 'dep.yaml'?"),
        ("--rampup-batch-size", ["--ddp-bucket-size"], ""),
    ],
)
def test_a_hint_offers_what_begins_so_then_what_is_near(name, known, hint):
    assert did_you_mean(name, known).endswith(hint)
    assert bool(hint) == bool(did_you_mean(name, known))


def test_the_zoo_offers_the_names_that_begin_with_what_was_written():
    assert "'gpt3-175b'" in did_you_mean("gpt3", names("models"))
    hint = did_you_mean("a100", names("devices"))
    assert "'a100-sxm-40gb'" in hint
    assert "'a100-sxm-80gb'" in hint
    assert "'a10'" not in hint
