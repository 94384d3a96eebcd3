"""The orders' contracts: what the last release reads and wrote, and examples of every version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from common.events import OrderCancelled
from saga.discovery import choreography
from saga.envelope import Decoder, schema_uri
from saga.message import versions_of
from saga.schemas.export import schema_files, travelling
from saga.schemas.registry import problems

CONTRACTS = Path(__file__).parents[2] / "contracts"
GRAPH = choreography()


def test_the_last_release_reads_what_is_published_now_and_the_other_way() -> None:
    assert [*map(str, problems(CONTRACTS, GRAPH))] == []


EXAMPLES = sorted((CONTRACTS / "examples").glob("*/*.json"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_stored_example_fits_its_versions_schema_and_is_read_as_the_newest(file: Path) -> None:
    document = json.loads(file.read_text())
    version = int(file.stem.removeprefix("v").partition("-")[0])
    name = f"{file.parent.name}/v{version}.json"
    released = CONTRACTS / "released" / name  # unless it is new since then
    for path in (CONTRACTS / name, *([released] if released.exists() else [])):
        schema = json.loads(path.read_text())
        Draft202012Validator(schema).validate(document["data"])
        assert document["dataschema"] == schema["$id"]

    (kind,) = (kind for kind in travelling(GRAPH) if kind.type == file.parent.name)
    newest = max(versions_of(kind))
    read = Decoder([kind]).decode(json.dumps(document).encode())

    assert read.dataschema == schema_uri(versions_of(kind)[newest])
    if version == newest:
        assert json.loads(read.to_bytes()) == document


def test_there_is_an_example_of_every_version_there_is() -> None:
    named = {name.removesuffix(".json") for name in schema_files(GRAPH)}

    assert named <= {f"{file.parent.name}/{file.stem.partition('-')[0]}" for file in EXAMPLES}


def test_a_value_that_is_new_to_a_reader_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CONTRACTS, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "released" / OrderCancelled.type / "v1.json"
    schema = json.loads(file.read_text())
    schema["$defs"]["CancellationReason"]["enum"].remove("deadline_exceeded")
    file.write_text(json.dumps(schema))

    (refused,) = problems(tmp_path, GRAPH)

    assert str(refused) == (
        "order.cancelled v1: readers of the last release refuse it: "
        "reason: may be 'deadline_exceeded', which is not known"
    )
