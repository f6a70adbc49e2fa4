"""Reading results from files: what is one, and what is said of anything else."""

import copy
import json

import pytest

import fastsock
from fastsock.client import saved


@pytest.fixture(scope="module")
def run():
    with fastsock.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=10)
    return report.as_dict()


def write(path, document):
    path.write_text(json.dumps(document))
    return str(path)


def test_a_run_a_series_and_a_directory_are_read(run, tmp_path):
    later = {**run, "started_at": "2999-01-01T00:00:00.000Z"}
    series = {"schema": "fastsock.series/1", "runs": [run, later]}
    assert saved.read(write(tmp_path / "b.json", run)).runs == (run,)
    assert saved.read(write(tmp_path / "a.json", series)).runs == (run, later)
    (tmp_path / "notes.txt").write_text("not a result")
    assert saved.read(str(tmp_path)).runs == (run, run, later)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a whole JSON document"),
        ('{"schema": "fastsock.load/2", "mess', "is not a whole JSON document"),
        ("[" * 100_000, "is not a whole JSON document"),
        ("[1]", "is not a result of fastsock load --json"),
        ('{"schema": 5}', "is not a result of fastsock load --json"),
        ('{"schema": "fastsock.load/3"}', "which this version does not know"),
        ('{"schema": "fastsock.bench/4"}', "is a comparison of servers"),
        ('{"schema": "fastsock.compare/1"}', "is a comparison of runs"),
        ('{"schema": "fastsock.load/2", "messages": NaN}', "is not a whole JSON document"),
        ('{"schema": "fastsock.load/2"}', "has no usable field"),
        ('{"schema": "fastsock.series/1", "runs": []}', "a series without runs"),
        ('{"schema": "fastsock.series/1", "runs": [3]}', "a run that is not an object"),
    ],
)
def test_what_is_no_result_is_refused(text, said, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        saved.read(str(path))


@pytest.mark.parametrize("field", list(saved._NEEDED))
def test_a_run_without_a_field_is_damaged(run, field, tmp_path):
    damaged = copy.deepcopy(run)
    del damaged[field]
    with pytest.raises(ValueError, match=f"no usable field '{field}'"):
        saved.read(write(tmp_path / "file.json", damaged))


def test_no_file_and_an_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        saved.read(str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match="no file in it ends"):
        saved.read(str(tmp_path))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a whole JSON document"):
        saved.read(str(tmp_path / "binary.json"))
