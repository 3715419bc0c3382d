"""Reading measurement tables: what is right, and each way in which a table can be wrong."""

import gzip

import numpy as np
import pytest

from mpsim.errors import CalibrationError
from mpsim.spec.tables import COLUMNS, read_folder, read_machine, read_table

GEMM = "dtype,m,n,k,ms\nbfloat16,32,64,128,0.01\nfp8,32,64,128,0.02\n"


def test_names_of_formats_and_collectives_are_those_of_mpsim(tmp_path):
    (tmp_path / "gemm.csv").write_text(GEMM)
    (tmp_path / "collectives.csv").write_text(
        "op,gpus,bytes,ms,link\nalltoall,2,512,0.1,nvlink\nsendrecv,2,512,0.1,nvlink\n"
    )
    tables = read_folder(tmp_path)
    assert list(tables["gemm"]["dtype"]) == ["bf16", "fp8"]
    assert list(tables["collectives"]["op"]) == ["all_to_all", "send"]
    assert tables["gemm"].seconds == pytest.approx([1e-5, 2e-5])


def test_a_folder_of_several_devices_gives_the_one_asked_for(tmp_path):
    for name in ("mine", "other"):
        with gzip.open(tmp_path / f"{name}.gemm.csv.gz", "wt") as file:
            file.write(GEMM if name == "mine" else GEMM + "fp8,1,1,1,1\n")
    with gzip.open(tmp_path / "mine.nccl.csv.gz", "wt") as file:
        file.write("op,gpus,bytes,ms\nall_reduce,8,1024,0.5\n")
    tables = read_folder(tmp_path, device="mine")
    assert {name: len(table) for name, table in tables.items()} == {"gemm": 2, "collectives": 1}


def test_comments_and_empty_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "gemm.csv"
    path.write_text("# made today\n" + GEMM + "\nfp8,1,1,1,-2\n")
    with pytest.raises(CalibrationError, match="line 6: ms is '-2'"):
        read_table(path, "gemm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("dtype,m,n,k,ms\n", "has no rows"),
        ("dtype,m,n,ms\nfp8,1,1,1\n", "line 1: column 'k' is missing; expected dtype,m,n,k,ms"),
        ("dtype,m,n,k,ms\nfp8,1,1,1\n", "line 2: 4 values, but the header names 5"),
        (
            "dtype,m,n,k,ms\nfp8,1,1,1,fast\n",
            "line 2: ms is 'fast', but must be a number above zero",
        ),
        ("dtype,m,n,k,ms\nfp8,1,0,1,1\n", "line 2: n is '0', but must be a number above zero"),
        ("dtype,m,n,k,ms\nfp8,1,1,1,nan\n", "line 2: ms is 'nan', but must be a number above zero"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "gemm.csv"
    path.write_text(text)
    with pytest.raises(CalibrationError) as caught:
        read_table(path, "gemm")
    assert str(caught.value) == f"{path}: {message}"


def test_what_is_not_gzip_or_not_text_is_said(tmp_path):
    packed, raw = tmp_path / "gemm.csv.gz", tmp_path / "launch.csv"
    packed.write_bytes(b"no gzip")
    raw.write_bytes(b"\xff\xfe\x00")
    for path, name in ((packed, "gemm"), (raw, "launch")):
        with pytest.raises(CalibrationError, match=f"{path.name}: cannot be read"):
            read_table(path, name)


def test_an_empty_folder_says_what_it_could_hold(tmp_path):
    with pytest.raises(CalibrationError) as caught:
        read_folder(tmp_path, device="mine")
    assert all(f"{name}.csv" in str(caught.value) for name in COLUMNS)
    assert "mine.gemm.csv.gz" in str(caught.value)


def test_two_tables_of_one_kind_are_refused(tmp_path):
    for name in ("nccl.csv", "collectives.csv"):
        (tmp_path / name).write_text("op,gpus,bytes,ms\nall_reduce,8,1024,0.5\n")
    with pytest.raises(CalibrationError, match="a second table 'collectives' beside"):
        read_folder(tmp_path)


def test_rows_of_a_mask_keep_their_columns(tmp_path):
    (tmp_path / "gemm.csv").write_text(GEMM)
    table = read_folder(tmp_path)["gemm"]
    assert len(table.rows(np.array([False, True]))) == 1
    assert table.rows(table["dtype"] == "fp8")["ms"] == pytest.approx([0.02])


def test_a_machine_is_a_mapping(tmp_path):
    assert read_machine(tmp_path) == {}
    path = tmp_path / "machine.yaml"
    path.write_text("device: my board\ndate: 2026-01-31\n")
    assert read_machine(tmp_path)["device"] == "my board"
    path.write_text("- a\n- b\n")
    with pytest.raises(CalibrationError, match=r"machine\.yaml: expected a mapping"):
        read_machine(tmp_path)
