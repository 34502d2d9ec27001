# SPDX-License-Identifier: Apache-2.0
"""Models by hub id and `push`, against a stand-in of the hub's HTTP interface on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, hub_server
from huggingface_hub import constants
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.checkpoints import hub as hub_room
from lilliput.cli import main
from lilliput.containers import open_model
from lilliput.containers.container import Split
from lilliput.errors import CheckpointError, PublishError
from lilliput.pushing import PushOptions, push
from lilliput.recipes.ledger import ledger_path

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "Tiny"
    write_tiny_llama(folder, hidden=64, ffn=96, layers=1, heads=2, kv_heads=1)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# The original\n")
    return folder


@pytest.fixture(scope="module")
def quantized(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "Tiny-Q8_0.gguf"
    workflows.quantize(tiny, "Q8_0", target)
    return target


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield running


def published(server: HubServer, folder: Path, name: str = "o/m") -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    server.repositories[name] = files
    return files


@pytest.mark.parametrize("moved", [1, 2])
def test_a_split_set_killed_between_its_renames_is_finished_without_force(
    tiny: Path, tmp_path: Path, moved: int
) -> None:
    options = workflows.QuantizeOptions(split=Split(max_tensors=5))
    output = tmp_path / "out" / "T.gguf"
    paths = workflows.quantize(tiny, "Q8_0", output, options=options).output
    assert len(paths) > 2
    before = [path.read_bytes() for path in paths]
    # As the rename of the set leaves it: the last files in place, the first ones still in the run's own folder.
    ledger_path(output).unlink()
    left = output.parent / ".T.gguf.abc.partial"
    left.mkdir()
    for path in paths[:-moved]:
        path.rename(left / path.name)
    with pytest.raises(PublishError, match="exists already; pass --force"):
        workflows.quantize(tiny, "Q4_0", output, options=options)
    assert workflows.quantize(tiny, "Q8_0", output, options=options).output == paths
    assert [path.read_bytes() for path in paths] == before
    assert ledger_path(output).exists()
    assert not left.exists()


def test_only_the_shards_that_the_index_names_are_fetched(server: HubServer, tiny: Path) -> None:
    files = published(server, tiny)
    files["model.fp16.safetensors"] = bytes(2000)
    files["pytorch_model.bin"] = bytes(2000)
    source = open_model("o/m")
    assert source.fingerprint() == open_model(tiny).fingerprint()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(server.fetched())
    assert not {"model.fp16.safetensors", "pytorch_model.bin"} & set(server.fetched())
    assert source.path.name == COMMIT


def test_one_quantization_of_a_repository_is_opened_by_its_name(server: HubServer, quantized: Path) -> None:
    data = quantized.read_bytes()
    names = ("Tiny-Q8_0.gguf", "Tiny-UD-Q8_0.gguf", "Tiny-Q4_K_M.gguf", "mmproj-Q8_0.gguf", "README.md")
    server.repositories["o/m"] = dict.fromkeys(names, data)
    for chosen in ("o/m:Q8_0", "o/m:q8_0", "o/m:Tiny-Q8_0.gguf"):
        assert open_model(chosen).fingerprint() == open_model(quantized).fingerprint()
    assert server.fetched() == ["Tiny-Q8_0.gguf"]
    with pytest.raises(CheckpointError, match=r"o/m: no file 'Q2_K' there; it has Q4_K_M, Q8_0, UD-Q8_0"):
        open_model("o/m:Q2_K")
    with pytest.raises(CheckpointError, match=r"no safetensors weights .* files: o/m:Q4_K_M, o/m:Q8_0, o/m:UD-Q8_0$"):
        open_model("o/m")
    server.repositories["o/m"] = {"pytorch_model.bin": data, "config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"no safetensors weights .* pickled ones .* are not fetched"):
        open_model("o/m")


def test_all_parts_of_a_split_are_fetched_and_no_others(server: HubServer, tiny: Path, tmp_path: Path) -> None:
    split = workflows.QuantizeOptions(split=Split(max_tensors=5))
    workflows.quantize(tiny, "Q8_0", tmp_path / "made" / "T-Q8_0.gguf", options=split)
    files = published(server, tmp_path / "made")
    server.repositories["o/m"] = {f"Q8_0/{name}": data for name, data in files.items()} | {"Q4_0/x-Q4_0.gguf": b"x"}
    source = open_model("o/m:Q8_0")
    assert len(source.weight_files) > 1
    assert sorted(server.fetched()) == sorted(f"Q8_0/{path.name}" for path in source.weight_files)


def test_a_transfer_that_was_cut_continues_where_it_stopped(
    server: HubServer, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)
    server.repositories["o/m"] = {quantized.name: quantized.read_bytes()}
    server.cut = {quantized.name}
    assert open_model("o/m:Q8_0").fingerprint() == open_model(quantized).fingerprint()
    ranges = [line.split()[2:] for line in server.requests if line.startswith("GET /o/m/resolve")]
    assert any(part and part[0] != "bytes=0-" for part in ranges), ranges


def test_other_bytes_than_the_hub_promised_are_refused_and_not_kept(server: HubServer, quantized: Path) -> None:
    server.repositories["o/m"] = {quantized.name: quantized.read_bytes()}
    server.damaged = {quantized.name}
    with pytest.raises(CheckpointError, match=r"Tiny-Q8_0.gguf: the download is damaged"):
        open_model("o/m:Q8_0")
    server.damaged = set()
    assert open_model("o/m:Q8_0").fingerprint() == open_model(quantized).fingerprint()


def test_what_is_in_the_cache_opens_without_the_hub(
    server: HubServer, quantized: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["o/m"] = {quantized.name: quantized.read_bytes()}
    open_model("o/m:Q8_0")
    published(server, tiny, "o/folder")
    open_model("o/folder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(server.requests)
    assert open_model("o/m:Q8_0").fingerprint() == open_model(quantized).fingerprint()
    assert open_model("o/folder").fingerprint() == open_model(tiny).fingerprint()
    assert len(server.requests) == before
    with pytest.raises(CheckpointError, match="o/other: not in the local cache"):
        open_model("o/other:Q8_0")


@pytest.mark.parametrize("revision", ["v1", "89abcdef" * 5])
def test_a_revision_is_what_it_was_when_the_branch_has_moved(
    revision: str, server: HubServer, quantized: Path, tiny: Path
) -> None:
    published(server, tiny)
    server.repositories["o/m"] |= {quantized.name: b"a newer one"}
    old = server.repositories["o/m"] | {quantized.name: quantized.read_bytes()}
    old["config.json"] = old["config.json"].replace(b'"rope_theta": 10000.0', b'"rope_theta": 70000.0')
    server.earlier[revision] = old
    assert open_model("o/m:Q8_0", revision=revision).fingerprint() == open_model(quantized).fingerprint()
    assert open_model("o/m", revision=revision).config.rope.base == 70000.0
    assert open_model("o/m").config.rope.base == 10000.0
    with pytest.raises(CheckpointError, match="o/m: no revision 'v9' on the hub"):
        open_model("o/m", revision="v9")
    with pytest.raises(CheckpointError, match="o/m: no revision 'v9' on the hub"):
        open_model("o/m:Q8_0", revision="v9")


def test_an_old_gptq_repository_is_fetched_and_compared(server: HubServer, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "Tiny.gptq"
    workflows.quantize(tiny, "int4_g32", target)
    files = published(server, target)
    files["gptq_model-4bit-32g.safetensors"] = files.pop("model.safetensors")
    server.damaged = {"gptq_model-4bit-32g.safetensors"}
    with pytest.raises(CheckpointError, match=r"gptq_model-4bit-32g.safetensors: the download is damaged"):
        open_model("o/m")
    server.damaged = set()
    assert open_model("o/m").fingerprint() == open_model(target).fingerprint()


def test_a_repository_that_is_not_there_is_one_line(server: HubServer) -> None:
    with pytest.raises(CheckpointError, match="o/missing: no such folder here and no such model"):
        open_model("o/missing:Q8_0")


def test_a_file_its_ledger_and_a_card_are_pushed_in_one_commit(server: HubServer, quantized: Path) -> None:
    result = push(quantized, "o/new", PushOptions(private=True))
    files = server.repositories["o/new"]
    assert sorted(files) == ["README.md", "Tiny-Q8_0.gguf", "Tiny-Q8_0.gguf.ledger.json"]
    assert files["Tiny-Q8_0.gguf"] == quantized.read_bytes()
    assert result.commit == f"{server.url}/o/new/commit/{COMMIT}"
    assert server.created[0].get("visibility") == "private" or server.created[0].get("private") is True
    assert len(server.commits) == 1
    card = files["README.md"].decode()
    assert card.startswith("---\n")
    assert "license: mit" in card
    assert "quantized_by: lilliput" in card
    assert "Not measured against the original" in card
    # And back again.
    assert open_model("o/new:Q8_0").fingerprint() == open_model(quantized).fingerprint()


def test_a_second_push_lists_both_files_in_the_card(
    server: HubServer, tiny: Path, quantized: Path, tmp_path: Path
) -> None:
    other = tmp_path / "Tiny-Q4_0.gguf"
    workflows.quantize(tiny, "Q4_0", other)
    for file in (quantized, other, quantized):
        push(file, "o/both")
    card = server.repositories["o/both"]["README.md"].decode()
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["`Tiny-Q8_0.gguf`", "`Tiny-Q4_0.gguf`"]
    assert card.count("Not measured against the original") == 2
    assert card.count("license: mit") == 1
    messages = [commit["summary"] for commit in server.commits]
    assert messages[1] == "Upload Tiny-Q4_0.gguf with lilliput"


def test_a_card_written_by_hand_stays_around_what_is_pushed(server: HubServer, quantized: Path, tmp_path: Path) -> None:
    server.repositories["o/hand"] = {
        "README.md": b"---\nlicense: apache-2.0\ntags: [mine]\n---\n\n# Mine\n\nBy hand.\n"
    }
    push(quantized, "o/hand")
    card = server.repositories["o/hand"]["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "- mine\n- lilliput" in card
    assert card.index("By hand.") < card.index("## `Tiny-Q8_0.gguf`")
    finished = tmp_path / "card.md"
    finished.write_text("# Finished\n")
    push(quantized, "o/hand", PushOptions(card=finished))
    assert server.repositories["o/hand"]["README.md"] == b"# Finished\n"
    server.repositories["o/hand"]["README.md"] = b"---\n- a: [\n---\n# Mine\n"
    with pytest.raises(PublishError, match=r"YAML block of its README.md cannot be read"):
        push(quantized, "o/hand")


def test_a_folder_is_pushed_with_the_originals_card_beside_ours(server: HubServer, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "Tiny.gptq"
    workflows.quantize(tiny, "int8_g32", target)
    push(target, "o/m", PushOptions(revision="w8"))
    files = server.repositories["o/m"]
    assert files["README.original.md"].decode().endswith("# The original\n")
    assert "library_name: transformers" in files["README.md"].decode()
    assert server.branches == ["w8"]
    assert server.commits[0]["revision"] == "w8"
    assert open_model("o/m").fingerprint() == open_model(target).fingerprint()


def test_a_dry_run_lists_and_uploads_nothing(
    server: HubServer, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(quantized), "o/m", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "would upload to o/m (main):" in shown
    assert "Tiny-Q8_0.gguf.ledger.json" in shown
    assert main(["push", str(quantized), "o/m", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commit"] is None
    assert [entry["path"] for entry in found["files"]] == ["README.md", "Tiny-Q8_0.gguf", "Tiny-Q8_0.gguf.ledger.json"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "c.md", "--base", "b"], r"--base: without effect with --card, which is finished; give one of them"),
        (["--text", "t.txt"], r"--text: without effect without --base, the original to measure against; give it"),
        (
            ["--dry-run", "--private", "--message", "m"],
            r"--private, --message: without effect with --dry-run|--message",
        ),
    ],
)
def test_options_without_effect_are_refused(
    words: list[str], said: str, server: HubServer, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(quantized), "o/m", *words]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert server.requests == []


def test_a_refusal_and_a_wrong_name_are_one_line(server: HubServer, quantized: Path, tmp_path: Path) -> None:
    server.refuses_writes = True
    with pytest.raises(PublishError, match=r"o/m: the hub refused \(403\); set HF_TOKEN"):
        push(quantized, "o/m")
    with pytest.raises(PublishError, match="write organization/name"):
        push(quantized, "name")
    with pytest.raises(PublishError, match="no such file or folder"):
        push(tmp_path / "nothing", "o/m")


def test_the_names_of_quantizations_are_recognized() -> None:
    names = ["M-Q4_K_M.gguf", "M-IQ2_XXS-00001-of-00002.gguf", "M-IQ2_XXS-00002-of-00002.gguf", "M-BF16.gguf", "a.txt"]
    assert hub_room._chosen_files("o/m", names, "iq2_xxs") == names[1:3]
    with pytest.raises(CheckpointError, match=r"it has Q4_K_M, IQ2_XXS, BF16$"):
        hub_room._chosen_files("o/m", names, "K_M_Q4")
