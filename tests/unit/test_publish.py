# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from model_files import tiny_model

from lilliput.containers import CONTAINERS, open_model, part_writer
from lilliput.containers import publish as publishing
from lilliput.containers.container import Container, Contents, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.lilliput_safetensors import LilliputSafetensors
from lilliput.containers.publish import copy_side_files, publish, staging_folder, write_text
from lilliput.errors import ContainerError, PublishError
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
EVERY = pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)


@pytest.fixture
def model() -> tuple[Contents, dict[str, QuantizedTensor]]:
    return tiny_model(**SMALL)


def interrupted(tensors: dict[str, QuantizedTensor], failure: BaseException) -> Iterator[QuantizedTensor]:
    for count, tensor in enumerate(tensors.values()):
        if count == 3:
            raise failure
        yield tensor


@EVERY
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("x"), MemoryError()])
def test_an_interruption_leaves_nothing_behind(
    container: Container, failure: BaseException, model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    with pytest.raises(type(failure)):
        publish(container, contents, interrupted(tensors, failure), tmp_path / ("x" + container.suffix))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_folder_that_was_made_for_the_output(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    with pytest.raises(KeyboardInterrupt):
        publish(Gguf(), contents, interrupted(tensors, KeyboardInterrupt()), tmp_path / "a" / "b" / "x.gguf")
    assert list(tmp_path.iterdir()) == []
    publish(Gguf(), contents, tensors.values(), tmp_path / "a" / "b" / "x.gguf")
    assert (tmp_path / "a" / "b" / "x.gguf").is_file()


def test_what_a_killed_run_left_is_removed_and_what_a_running_one_writes_is_not(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    abandoned = tmp_path / ".x.gguf.abc.partial"
    abandoned.mkdir()
    (abandoned / "x.gguf").write_bytes(b"half")
    with staging_folder(tmp_path / "x.gguf") as running:
        assert not abandoned.exists()
        publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf")
        assert running.is_dir()
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


def test_an_output_that_appears_during_the_work_is_not_replaced(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model

    def slow() -> Iterator[QuantizedTensor]:
        yield from tensors.values()
        (tmp_path / "x.gguf").write_bytes(b"precious")

    with pytest.raises(PublishError, match="exists already"):
        publish(Gguf(), contents, slow(), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == b"precious"


def test_a_limit_on_file_sizes_is_one_clear_line(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(PublishError, match=r"x.gguf: cannot be written: File too large"):
            publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_an_interruption_leaves_the_file_that_was_there(
    container: Container, model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    target = tmp_path / ("x" + container.suffix)
    target.write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        publish(container, contents, interrupted(tensors, KeyboardInterrupt()), target, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_output_is_refused_before_any_work(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    (tmp_path / "x.gguf").write_bytes(b"precious")
    with pytest.raises(PublishError, match=r"x.gguf exists already; pass --force"):
        publish(Gguf(), contents, interrupted(tensors, AssertionError()), tmp_path / "x.gguf")
    publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf", overwrite=True)
    open_model(tmp_path / "x.gguf")


def test_a_full_disk_is_noticed_before_any_work(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, tensors = model
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2000, free=1000))
    with pytest.raises(PublishError, match=r"x.gguf needs .* MB, .* has 0.0 MB free"):
        publish(Gguf(), contents, interrupted(tensors, AssertionError()), tmp_path / "new" / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_keeps_no_files_is_named_before_any_work(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, tensors = model
    with pytest.raises(PublishError, match=r"/proc is no disk and keeps no files; choose another place"):
        publish(Gguf(), contents, interrupted(tensors, AssertionError()), Path("/proc/new/x.gguf"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PublishError, match=r"no permission to write in .*; choose another place"):
        publish(Gguf(), contents, interrupted(tensors, AssertionError()), tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "cannot be written")],
)
def test_a_disk_that_fails_during_the_work_leaves_nothing(
    number: int,
    says: str,
    model: tuple[Contents, dict[str, QuantizedTensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    contents, tensors = model
    monkeypatch.setattr(part_writer, "_write_array", fail)
    with pytest.raises(PublishError, match=f"x.gguf: {says}"):
        publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_bytes_that_change_on_their_way_are_noticed(
    container: Container,
    model: tuple[Contents, dict[str, QuantizedTensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contents, tensors = model
    real = os.fsync

    def corrupting(descriptor: int) -> None:
        real(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            raw = bytearray(path.read_bytes())
            raw[-200] ^= 1
            path.write_bytes(raw)

    monkeypatch.setattr(part_writer.os, "fsync", corrupting)
    with pytest.raises(ContainerError, match=r"tensor '.*' read back differs from what was written"):
        publish(container, contents, tensors.values(), tmp_path / ("x" + container.suffix))
    assert list(tmp_path.iterdir()) == []


@EVERY
@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_tensor_that_decodes_to_no_number_is_named(
    container: Container,
    value: float,
    says: str,
    model: tuple[Contents, dict[str, QuantizedTensor]],
    tmp_path: Path,
) -> None:
    contents, tensors = model
    weight = np.zeros((1, 32), dtype=np.float32)
    weight[0, 3] = value
    name = "blk.0.ffn_norm.weight"
    tensors[name] = replace(tensors[name], planes={"blocks": weight.view(np.uint8)})
    with pytest.raises(ContainerError, match=f"tensor '{name}' decodes to {says}"):
        publish(container, contents, tensors.values(), tmp_path / ("x" + container.suffix))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_out_of_order_missing_or_in_excess_is_named(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    made = list(tensors.values())
    for wrong, says in (
        ([made[1], made[0], *made[2:]], "expected tensor 'token_embd.weight'"),
        (made[:-1], "'output.weight' was planned but never made"),
        ([*made, made[0]], "'token_embd.weight' was made but has no place"),
        ([replace(made[0], format=get_format("f16")), *made[1:]], "F16"),
        ([replace(made[0], planes={"blocks": np.zeros(3, np.uint8)}), *made[1:]], "do not fit the planned"),
    ):
        with pytest.raises(ContainerError, match=says):
            publish(Gguf(), contents, wrong, tmp_path / "x.gguf")
        assert list(tmp_path.iterdir()) == []


def test_an_interruption_between_the_parts_of_a_split_leaves_no_part(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, tensors = model
    real = os.replace
    calls: list[Path] = []

    def interrupting(source: Path, target: Path) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(target)
        real(source, target)

    monkeypatch.setattr(publishing.os, "replace", interrupting)
    with pytest.raises(KeyboardInterrupt):
        publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf", split=Split(max_tensors=4))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_path_through_a_file_is_refused(
    model: tuple[Contents, dict[str, QuantizedTensor]], tmp_path: Path
) -> None:
    contents, tensors = model
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(PublishError, match="is a folder"):
        publish(Gguf(), contents, tensors.values(), tmp_path / "x.gguf", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="is a file, not a folder"):
        publish(Gguf(), contents, tensors.values(), tmp_path / "file" / "x.gguf")


def test_what_gguf_cannot_hold_is_named_before_any_work(
    model: tuple[Contents, dict[str, QuantizedTensor]],
) -> None:
    contents, _ = model
    with pytest.raises(ContainerError, match="lilliput's own layout is always one file"):
        LilliputSafetensors().layout(contents, "x", Split(max_bytes=1))
    from lilliput.formats import PlaneSpec

    sidecars = {"output.weight": {"order": PlaneSpec(np.dtype(np.int32), (3,))}}
    with pytest.raises(ContainerError, match=r"'output.weight': GGUF cannot hold sidecars"):
        Gguf().layout(replace(contents, sidecars=sidecars), "x", Split())


def test_a_text_file_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "sub" / "ledger.json", "größe")
    assert (tmp_path / "sub" / "ledger.json").read_text(encoding="utf-8") == "größe"
    assert list((tmp_path / "sub").iterdir()) == [tmp_path / "sub" / "ledger.json"]


def test_side_files_are_copied_without_replacing_what_is_there(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    (source / "LICENSE").write_text("theirs")
    (source / "generation_config.json").write_text("{}")
    target.mkdir()
    (target / "LICENSE").write_text("ours")
    copied = copy_side_files(sorted(source.iterdir()), target)
    assert [path.name for path in copied] == ["generation_config.json"]
    assert (target / "LICENSE").read_text() == "ours"
