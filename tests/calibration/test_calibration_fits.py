"""Fits: made data give back their parameters; bad data are refused; residuals are honest."""

import datetime

import numpy as np
import pytest

from mpsim.calibration.attentions import fit_attention
from mpsim.calibration.fit import fit_profile
from mpsim.calibration.gemms import fit_gemm
from mpsim.calibration.least_squares import Parameter, fit_parameters
from mpsim.calibration.links import fit_link
from mpsim.calibration.surfaces import fit_surface
from mpsim.calibration.target import target
from mpsim.cost.collectives import fitted_seconds
from mpsim.cost.surface import surface_factor
from mpsim.cost.tables import device_of, predicted_seconds
from mpsim.cost.textbook import textbook_seconds
from mpsim.errors import CalibrationError
from mpsim.spec.cluster import LinkSpec
from mpsim.spec.profile import load_profile
from mpsim.spec.tables import Table

BASE = load_profile("h100_sxm")
LINK = LinkSpec(name="made", bandwidth="300 GB/s", latency="2 us")
DAY = datetime.date(2026, 1, 31)


def table(path, name, **columns):
    arrays = {
        key: np.array(value, dtype=object if key in ("dtype", "op", "what") else float)
        for key, value in columns.items()
    }
    return Table(name, path / f"{name}.csv", arrays)


def timed(made, profile, noise=0.0, seed=1):
    """The table with the times that a profile predicts, and log-normal noise."""
    ms = predicted_seconds(made, profile, device_of(profile), link=LINK) * 1e3
    ms = ms * np.exp(noise * np.random.default_rng(seed).standard_normal(len(made)))
    return Table(made.name, made.path, {**made.columns, "ms": ms})


@pytest.fixture
def gemms(tmp_path):
    rng = np.random.default_rng(0)
    m, n, k = (2.0 ** rng.integers(5, 14, 600) for _ in range(3))
    return table(tmp_path, "gemm", dtype=["bf16"] * 600, m=m, n=n, k=k, ms=np.ones(600))


@pytest.fixture
def attentions(tmp_path):
    rng = np.random.default_rng(0)
    heads = 2.0 ** rng.integers(2, 6, 300)
    return table(
        tmp_path,
        "attention_fwd",
        batch=2.0 ** rng.integers(0, 5, 300),
        seq=2.0 ** rng.integers(9, 14, 300),
        heads=heads,
        kv_heads=heads / rng.choice([1.0, 4.0], 300),
        head_dim=rng.choice([64.0, 128.0], 300),
        ms=np.ones(300),
    )


def plain(profile):
    """The profile without corrections: what the formulas alone say."""
    fits = {
        name: fit.model_copy(update={"correction": None, "tiling": None})
        for name, fit in profile.gemm.items()
    }
    attention = profile.attention.model_copy(update={"correction": None})
    return profile.model_copy(update={"gemm": fits, "attention": attention})


def test_parameters_of_a_line_are_found_with_their_errors():
    x = np.linspace(1, 10, 200)
    noise = 0.01 * np.random.default_rng(0).standard_normal(200)
    y = np.log(3 + 2 * x) + noise
    fitted = fit_parameters(
        [Parameter("a", 1, 0, 10), Parameter("b", 1, 0, 10)],
        lambda v: np.log(v["a"] + v["b"] * x) - y,
    )
    # within four of the standard errors that the fit itself states
    for name, true in (("a", 3.0), ("b", 2.0)):
        assert abs(fitted.values[name] / true - 1) < 4 * fitted.errors[name]
        assert fitted.errors[name] < 0.05


def test_measurements_that_are_no_numbers_cannot_be_fitted():
    with pytest.raises(CalibrationError, match="cannot be fitted"):
        fit_parameters([Parameter("a", 1, 0, 10)], lambda v: np.array([np.nan, v["a"]]))


def test_a_gemm_fit_gives_back_the_times_of_its_parameters(gemms):
    true = plain(BASE)
    made = timed(gemms, true)
    fit = fit_gemm(made, "bf16", true.sheet)
    again = true.model_copy(update={"gemm": {"bf16": fit}})
    error = np.abs(predicted_seconds(made, again, device_of(true)) / made.seconds - 1)
    # the surfaces take up what the sample of tiles leaves open
    assert np.median(error) < 0.01
    assert fit.floor == pytest.approx(true.gemm["bf16"].floor, rel=0.3)
    assert fit.bandwidth_fraction == pytest.approx(true.gemm["bf16"].bandwidth_fraction, rel=0.1)


def test_an_attention_fit_gives_back_its_parameters(attentions):
    true = plain(BASE)
    made = timed(attentions, true)
    fit = fit_attention(made, true.sheet, base=BASE.attention)
    expected = np.interp(np.log([64, 128]), np.log(BASE.attention.head_dim),
                         BASE.attention.peak_fraction)  # fmt: skip
    assert fit.peak_fraction == pytest.approx(tuple(expected), rel=0.05)
    assert fit.grouped == pytest.approx(BASE.attention.grouped, abs=0.02)
    backward = Table("attention_bwd", made.path, {**made.columns, "ms": made["ms"] * 4})
    both = fit_attention(made, true.sheet, backward=backward, base=BASE.attention)
    # the made times are four times the floor too, which the model counts once
    assert both.backward_efficiency == pytest.approx(2.5 / 4, rel=0.1)


def test_a_link_fit_passes_through_its_measurements(tmp_path):
    sizes = 2.0 ** np.arange(10, 30)
    seconds = textbook_seconds("all_reduce", sizes, 4, LINK) * np.linspace(1.2, 3, 20)
    made = table(
        tmp_path, "collectives", op=["all_reduce"] * 20, gpus=[4] * 20, bytes=sizes,
        ms=seconds * 1e3,
    )  # fmt: skip
    fit = fit_link(made, LINK)
    # factors are kept to a thousandth
    assert fitted_seconds("all_reduce", sizes, 4, LINK, fit=fit) == pytest.approx(seconds, rel=2e-3)


def test_times_that_fall_with_the_size_are_pooled(tmp_path):
    made = table(
        tmp_path, "collectives", op=["all_gather"] * 3, gpus=[2] * 3, bytes=[1024, 2048, 4096],
        ms=[0.02, 0.01, 0.03],
    )  # fmt: skip
    fit = fit_link(made, LINK)
    seconds = fitted_seconds("all_gather", np.array([1024.0, 2048.0]), 2, LINK, fit=fit)
    # the mean of the logarithms of 20 and 10 us
    assert seconds == pytest.approx([np.sqrt(2e-10)] * 2, rel=2e-3)


def test_a_surface_is_found_through_noise_and_outliers():
    rng = np.random.default_rng(0)
    x, y = 10 ** rng.uniform(0, 2, (2, 2000))
    truth = 0.1 * np.log(x) - 0.05 * np.log(y)
    logs = truth + 0.02 * rng.standard_normal(2000)
    logs[::50] += 2
    surface = fit_surface({"x": (1, 10, 100), "y": (1, 10, 100)}, (x, y), logs)
    missed = np.log(surface_factor(surface, x, y)) - truth
    assert np.abs(missed).max() < 0.02


def test_a_surface_without_data_makes_no_correction():
    nothing = np.array([])
    surface = fit_surface({"x": (1, 2), "y": (1, 2)}, (nothing, nothing), nothing)
    assert surface_factor(surface, np.array([1.5]), np.array([1.5])) == pytest.approx([1])


def fitted(tables, **changes):
    given = {
        "name": "mine", "device": "mine", "sheet": BASE.sheet, "link": LINK, "source": "made",
        "date": DAY, **changes,
    }  # fmt: skip
    return fit_profile(tables, BASE, **given)


def test_residuals_are_of_rows_that_were_not_fitted(gemms):
    made = timed(gemms, BASE, noise=0.03)
    profile = fitted({"gemm": made})
    held = sum(r.rows for r in profile.residuals if r.region in ("above 1 GFLOP", "small"))
    assert profile.tables["gemm"] + held == len(made)
    assert held == pytest.approx(0.2 * len(made), rel=0.25)
    # noise of 3 % has a median of 2 %: no fit can do better on rows that it has not seen
    large = next(r for r in profile.residuals if r.region == "above 1 GFLOP")
    assert 0.01 < large.median < 0.06


def test_a_profile_keeps_what_was_not_measured(tmp_path):
    stream = table(
        tmp_path, "memory_bound", op=["copy"] * 8, bytes=2.0 ** np.arange(20, 28), ms=np.ones(8)
    )
    seconds = 4e-6 + stream["bytes"] / (0.5 * BASE.sheet.memory_bandwidth)
    stream = Table("memory_bound", stream.path, {**stream.columns, "ms": seconds * 1e3})
    launch = table(tmp_path, "launch", what=["host", "other"], us=[3.5, 1.0])
    profile = fitted({"memory_bound": stream, "launch": launch}, kind="measured")
    assert profile.memory.bandwidth_fraction == pytest.approx(0.5, rel=0.01)
    assert profile.memory.floor == pytest.approx(4e-6, rel=0.01)
    assert profile.launch.host == pytest.approx(3.5e-6)
    assert profile.launch.dispatch == BASE.launch.dispatch
    assert profile.gemm == BASE.gemm
    assert profile.kind == "measured"


def test_a_precision_without_a_peak_rate_is_refused(gemms):
    gemms["dtype"][:] = "mxfp8"
    with pytest.raises(CalibrationError, match="has rows of mxfp8, but the data sheet has no peak"):
        fitted({"gemm": gemms})


def test_tables_that_nothing_is_fitted_from_are_refused(tmp_path):
    layers = table(tmp_path, "layers", batch=[1.0], fwd_ms=[1.0])
    with pytest.raises(CalibrationError, match="nothing can be fitted from these tables: layers"):
        fitted({"layers": layers})


def test_products_faster_than_the_data_sheet_are_refused(gemms):
    """Times in microseconds under the name of milliseconds, or another device's table."""
    made = timed(gemms, BASE)
    made["ms"][:] = made["ms"] / 1000
    with pytest.raises(CalibrationError, match="above the data sheet's 989 TFLOP/s"):
        fitted({"gemm": made})


def test_collectives_without_a_link_are_not_listed_as_fitted(gemms, tmp_path):
    made = timed(gemms, BASE)
    messages = table(tmp_path, "collectives", op=["all_reduce"], gpus=[2.0], bytes=[8.0], ms=[1.0])
    tables = {"gemm": made, "collectives": messages}
    for link, names in ((LINK, {"gemm", "collectives"}), (None, {"gemm"})):
        profile = fitted(tables, link=link)
        assert profile.tables.keys() == profile.fit_range.keys() == names
    with pytest.raises(CalibrationError, match="from these tables: collectives"):
        fitted({"collectives": messages}, link=None, name=BASE.name)


def test_an_unknown_device_gets_a_sheet_from_its_tables(gemms):
    made = timed(gemms, BASE)
    goal = target("my laptop", {"gemm": made}, {})
    rate = 2 * made["m"] * made["n"] * made["k"] / made.seconds
    assert goal.sheet.peak == {"bf16": pytest.approx(rate.max())}
    assert goal.link is None


def test_a_machine_may_state_its_sheet():
    sheet = {"peak": {"fp32": "2 TFLOP/s"}, "memory_bandwidth": "50 GB/s", "multiprocessors": 8}
    goal = target("my laptop", {}, {"sheet": sheet, "device": "a laptop"})
    assert goal.device == "a laptop"
    assert goal.sheet.peak == {"fp32": 2e12}
    with pytest.raises(CalibrationError, match=r"machine\.yaml\.sheet\.memory_bandwidth"):
        target("my laptop", {}, {"sheet": {**sheet, "memory_bandwidth": 50}})


@pytest.mark.parametrize(
    ("name", "device", "link"),
    [
        ("h100_sxm", "h100-sxm-80gb", "nvlink4"),
        ("h200_sxm", "h200-sxm-141gb", "nvlink4"),
        ("rtx_pro_6000_server", "rtx-pro-6000-server", "pcie5"),
        ("l40s", "l40s", "pcie4"),
    ],
)
def test_a_device_is_found_by_the_name_of_its_tables(name, device, link):
    goal = target(name, {}, {})
    assert goal.device == device
    assert goal.link.name == link
    assert target(name, {}, {}, link="pcie3").link.name == "pcie3"


def test_an_unknown_link_is_named():
    with pytest.raises(CalibrationError, match="no link 'nvlink44' in the zoo; did you mean"):
        target("h100_sxm", {}, {}, link="nvlink44")
