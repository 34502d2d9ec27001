# SPDX-License-Identifier: Apache-2.0
"""The contract that scripts rely on, walked on a tiny model; and bad inputs: one clear line, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import TEXT

from lilliput.recipes import machine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 30)
    return path


def test_quantize_prints_its_contract_and_is_up_to_date_the_second_time(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny-Q4_K_M.gguf"
    code, out, _ = run("quantize", model, "--to", "Q4_K_M", "-o", output, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["output"] == [str(output)]
    assert result["bytes"] == output.stat().st_size
    assert 4.5 <= result["bits_per_weight"] < 6.7
    ledger = json.loads(Path(result["ledger"]).read_text())
    assert all(entry["format"] == entry["planned_format"] for entry in ledger["entries"])
    before = output.stat().st_mtime_ns
    code, out, _ = run("quantize", model, "--to", "Q4_K_M", "-o", output)
    assert code == 0
    assert "up to date" in out
    assert output.stat().st_mtime_ns == before


def test_an_output_made_otherwise_is_not_overwritten_without_force(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.gguf"
    assert run("quantize", model, "--to", "F16", "-o", output)[0] == 0
    code, _, err = run("quantize", model, "--to", "Q8_0", "-o", output)
    assert code == 1
    assert "--force" in err
    assert run("quantize", model, "--to", "Q8_0", "-o", output, "--force")[0] == 0


def test_plan_predicts_the_exact_size(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("plan", model, "--to", "Q8_0", "--json")
    assert code == 0
    plan = json.loads(out)
    assert {"tensors", "bytes", "peak_ram_bytes", "disk_bytes", "seconds"} <= plan.keys()
    first = plan["tensors"][0]
    assert {"name", "shape", "format", "method", "bytes", "reason"} <= first.keys()
    output = tmp_path / "tiny-Q8_0.gguf"
    result = json.loads(run("quantize", model, "--to", "Q8_0", "-o", output, "--json")[1])
    assert plan["bytes"] == result["bytes"]
    assert sum(tensor["bytes"] for tensor in plan["tensors"]) * 8 == pytest.approx(
        result["bits_per_weight"] * sum(np.prod(tensor["shape"]) for tensor in plan["tensors"])
    )


@pytest.mark.parametrize("guidance", ["--text", "--statistics", "--imatrix"])
def test_plan_predicts_the_exact_size_of_a_guided_file(
    run: Run, model: Path, text: Path, tmp_path: Path, guidance: str
) -> None:
    given = text
    if guidance != "--text":
        given = tmp_path / ("statistics.safetensors" if guidance == "--statistics" else "imatrix.gguf")
        assert run("calibrate", model, "--text", text, "-o", given)[0] == 0
    plan = json.loads(run("plan", model, "--to", "Q4_K_M", guidance, given, "--json")[1])
    output = tmp_path / "guided.gguf"
    result = json.loads(run("quantize", model, "--to", "Q4_K_M", guidance, given, "-o", output, "--json")[1])
    assert plan["bytes"] == result["bytes"]


def test_run_is_greedy_and_repeatable_and_leaves_prompt_and_bos_out(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny-F32.gguf"
    run("quantize", model, "--to", "F32", "-o", output)
    words = (
        "run",
        output,
        "--prompt",
        "The lilliputians",
        "--max-tokens",
        8,
        "--temperature",
        0,
        "--seed",
        1,
        "--json",
    )
    code, out, _ = run(*words)
    assert code == 0
    result = json.loads(out)
    assert {"text", "token_ids", "prompt_tokens", "prefill_tok_s", "decode_tok_s"} <= result.keys()
    assert len(result["token_ids"]) <= 8
    assert not result["text"].startswith("The lilliputians")
    assert json.loads(run(*words)[1])["token_ids"] == result["token_ids"]
    assert run("run", output, "--prompt", "", "--max-tokens", 2, "--json")[0] == 0


def test_eval_measures_files_in_argument_order_and_pairs_them(
    run: Run, model: Path, tmp_path: Path, text: Path
) -> None:
    files = [tmp_path / f"tiny-{name}.gguf" for name in ("Q8_0", "Q4_0")]
    for file, name in zip(files, ("Q8_0", "Q4_0"), strict=True):
        run("quantize", model, "--to", name, "-o", file)
    code, out, _ = run("eval", model, *files, "--text", text, "--context", 64, "--json")
    assert code == 0
    result = json.loads(out)
    assert [Path(item["path"]) for item in result["files"]] == files
    assert result["files"][0]["mean_kld"] < result["files"][1]["mean_kld"]
    assert result["paired"][0]["kld_ratio"] < 1.0
    keys = "path bytes bits_per_weight tokens ppl ppl_stderr mean_kld mean_kld_stderr median_kld"
    assert {*keys.split(), "kld_99_9", "max_kld", "same_top", "rms_dp"} <= result["files"][0].keys()


def test_eval_and_report_take_the_builtin_text_and_measure_the_same(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.gguf"
    assert run("quantize", model, "--to", "Q4_0", "-o", output)[0] == 0
    words = (model, output, "--text", "builtin", "--tokens", 1024, "--json")
    code, out, _ = run("eval", *words)
    assert code == 0
    [file] = json.loads(out)["files"]
    code, out, _ = run("report", *words)
    assert code == 0
    [shown] = json.loads(out)["files"]
    assert shown["measured"]["mean_kld"]["value"] == pytest.approx(file["mean_kld"])


def test_eval_says_when_a_file_was_calibrated_on_the_measuring_text(
    run: Run, model: Path, tmp_path: Path, text: Path
) -> None:
    output = tmp_path / "tiny.gguf"
    assert run("quantize", model, "--to", "Q4_0", "--text", text, "--effort", "fast", "-o", output)[0] == 0
    assert "calibrated on a text of this name" in run("eval", model, output, "--text", text, "--tokens", 512)[2]
    other = tmp_path / "other.txt"
    shutil.copy(text, other)
    assert run("eval", model, output, "--text", other, "--tokens", 512)[2] == ""


def test_bench_gives_one_row_a_test(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny-Q8_0.gguf"
    run("quantize", model, "--to", "Q8_0", "-o", output)
    words = ("--threads", "1", "--prefill", 8, "--decode", 4, "--repeat", 1, "--json")
    code, out, _ = run("bench", output, *words)
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["test"] for row in rows] == ["prefill", "decode"]
    assert rows[0].keys() == {
        "threads", "test", "n", "depth", "kv_format", "batch", "instruction_set", "ready_s", "first_token_s",
        "limit_tok_s", "tok_s_median", "tok_s_min", "tok_s_max", "peak_rss_bytes",
    }  # fmt: skip
    assert [row["test"] for row in json.loads(run("bench", output, *words, "--prefill", 0)[1])["rows"]] == ["decode"]


def test_inspect_shows_metadata_and_tensors(run: Run, model: Path) -> None:
    found = json.loads(run("inspect", model, "--json")[1])
    assert found.keys() >= {"metadata", "tensors"}
    assert any(tensor["name"].endswith("q_proj.weight") for tensor in found["tensors"])


def test_a_split_set_is_written_and_runs(run: Run, model: Path, tmp_path: Path) -> None:
    words = ("quantize", model, "--to", "Q8_0", "-o", tmp_path / "tiny.gguf", "--split-max-size", "500kB", "--json")
    result = json.loads(run(*words)[1])
    assert len(result["output"]) > 1
    assert result["bytes"] == sum(Path(part).stat().st_size for part in result["output"])
    assert run("run", result["output"][1], "--max-tokens", 2, "--temperature", 0)[0] == 0


def broken_folder(model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    return folder


def with_config(model: Path, tmp_path: Path, **changes: object) -> Path:
    folder = broken_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def check_refused(run: Run, tmp_path: Path, words: tuple[object, ...], *expected: str) -> None:
    """Exit code 1, one line on stderr with the words, the JSON error object, and no file left behind."""
    folder = tmp_path / "output"
    folder.mkdir()
    code, out, err = run(*words, "-o", folder / "out.gguf", "--json")
    assert code == 1
    [line] = [line for line in err.splitlines() if not line.startswith("plan ")]
    assert line.startswith("error: ")
    for word in expected:
        assert word in line
    error = json.loads(out)["error"]
    assert error["type"]
    assert error["message"] in err
    assert list(folder.iterdir()) == []


def test_a_folder_without_config_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_refused(run, tmp_path, ("quantize", tmp_path / "empty", "--to", "Q8_0"), "config.json")


def test_an_unknown_architecture_is_named_where_gguf_cannot_hold_it(run: Run, model: Path, tmp_path: Path) -> None:
    folder = with_config(model, tmp_path, model_type="sphinx", architectures=["SphinxForCausalLM"])
    check_refused(run, tmp_path, ("quantize", folder, "--to", "Q8_0"), "sphinx", ".safetensors")


def test_a_config_without_a_model_type_is_refused_with_the_known_ones(run: Run, model: Path, tmp_path: Path) -> None:
    folder = with_config(model, tmp_path, model_type="")
    check_refused(run, tmp_path, ("quantize", folder, "--to", "Q8_0"), "model_type", "llama", "qwen3")


def test_truncated_weights_are_refused(run: Run, model: Path, tmp_path: Path) -> None:
    folder = broken_folder(model, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    check_refused(run, tmp_path, ("quantize", folder, "--to", "Q8_0"), "model.safetensors")


def test_a_tensor_with_nan_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    folder = broken_folder(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_refused(run, tmp_path, ("quantize", folder, "--to", "Q8_0"), "ffn_up", "row 3, column 5")


def test_an_unknown_preset_suggests_the_nearest(run: Run, model: Path, tmp_path: Path) -> None:
    check_refused(run, tmp_path, ("quantize", model, "--to", "Q4_K_N"), "Q4_K_M")


def test_an_unknown_format_names_three_and_the_list(run: Run, model: Path, tmp_path: Path) -> None:
    check_refused(run, tmp_path, ("quantize", model, "--to", "wholly-other"), "nearest: ", "`lilliput formats`")
    code, out, _ = run("formats", "--json")
    found = json.loads(out)
    assert code == 0
    assert "Q4_K" in {item["name"] for item in found["formats"]}
    assert "Q4_K_M" in {item["name"] for item in found["presets"]}
    assert ".gguf" in {item["ending"] for item in found["containers"]}
    assert "Q4_K_M" in run("formats")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("calibrate", "gulliver", "-o", "stats.txt"), ".safetensors, or in .gguf"),
        (("quantize", "gulliver", "-o", "model.guff"), "nearest: .gguf"),
        (("quantize", "gulliver", "--to", "nowhere.yaml"), "cannot read the recipe: No such file or directory"),
        (("bench", "gulliver", "--prefill", "0", "--decode", "0"), "nothing to measure"),
    ],
)
def test_a_wrong_name_or_number_is_refused_with_what_to_do(run: Run, words: tuple[str, ...], says: str) -> None:
    code, out, err = run(*words, "--json")
    assert (code, err.count("\n")) == (1, 1)
    assert says in err
    assert says in json.loads(out)["error"]["message"]


def test_parts_that_one_tensor_overfills_are_said(run: Run, model: Path, tmp_path: Path) -> None:
    words = ("quantize", model, "--to", "Q8_0", "-o", tmp_path / "tiny.gguf", "--split-max-size", "1kB")
    assert "a tensor is never cut, and the largest part has" in run(*words)[2]


def test_a_recipe_typo_names_field_and_line(run: Run, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('rules:\n  - match: "*"\n    formt: Q8_0\n')
    check_refused(run, tmp_path, ("quantize", model, "--to", recipe), "formt", "3")


def test_empty_calibration_text_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "nothing.txt").write_text("\n \n")
    words = ("quantize", model, "--to", "Q4_K", "--text", tmp_path / "nothing.txt")
    check_refused(run, tmp_path, words, "nothing.txt")


def test_a_text_of_a_few_tokens_is_refused_with_figures(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "word.txt").write_text("word")
    words = ("quantize", model, "--to", "Q4_K", "--text", tmp_path / "word.txt")
    check_refused(run, tmp_path, words, "word.txt: ", "at least 16")
    code, _, err = run("calibrate", model, "--text", tmp_path / "word.txt", "-o", tmp_path / "s.safetensors")
    assert (code, "at least 16" in err) == (1, True)


def test_plan_says_that_it_measures_the_machine_and_only_once(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SECONDS_PER_PROBE", 0.0)
    said = "measuring how fast this machine is"
    code, out, err = run("plan", model, "--to", "Q4_0", "--json")
    assert code == 0
    assert err.count(said) == 1
    assert json.loads(out)["seconds"]
    assert said not in run("plan", model, "--to", "Q4_0")[2]


@pytest.mark.parametrize("command", ["quantize", "plan", "calibrate"])
def test_fewer_tokens_than_inputs_are_warned_of(
    run: Run, model: Path, tmp_path: Path, text: Path, command: str
) -> None:
    pytest.importorskip("torch")
    chosen = () if command == "calibrate" else ("--to", "Q4_0")
    output = tmp_path / ("s.safetensors" if command == "calibrate" else "tiny.gguf")
    words = (command, model, *chosen, "--text", text, "-o", output)
    assert "calibrated on 64 tokens, and the widest layer has " in run(*words, "--tokens", 64)[2]
    assert "calibrated on" not in run(*words, "--tokens", 2048, *([] if command == "plan" else ["--force"]))[2]


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_an_effort_that_needs_a_text_says_so(run: Run, model: Path, tmp_path: Path, command: str) -> None:
    code, _, err = run(command, model, "--to", "Q4_0", "--effort", "balanced", "-o", tmp_path / "tiny.gguf")
    assert code == 1
    assert "--text builtin" in err
    assert "--effort fast, the default without a text" in err


@pytest.mark.parametrize(
    ("words", "option", "reason"),
    [
        (("plan", "gulliver", "--for", "vllm"), "--for", "without a target"),
        (("plan", "gulliver", "--formats", "q4_0"), "--formats", "without a target"),
        (("plan", "gulliver", "--tokens", "100"), "--tokens", "without a text"),
        (("plan", "gulliver", "--size", "5MB", "-o", "x.gguf"), "--output", "with a target"),
        (("plan", "gulliver", "--size", "5MB", "--text", "builtin", "--context", "64"), "--context", "without --ram"),
        (("plan", "gulliver", "--method", "feedback", "--effort", "fast"), "--effort", "with --method"),
        (("fit", "gulliver", "--size", "5MB", "--text", "builtin", "--seed", "1"), "--seed", "without a search"),
        (("fit", "--from", "work", "--size", "5MB", "-o", "x.gguf", "--tokens", "9"), "--tokens", "with --from"),
        (("fit", "gulliver", "--max-kld", "1", "--search", "agent"), "--search", "with --max-kld"),
        (("quantize", "gulliver", "--inputs", "both"), "--inputs", "without a text"),
        (("run", "gulliver", "--beams", "2"), "--beams", "on a model that predicts the next token"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(
    run: Run, words: tuple[str, ...], option: str, reason: str
) -> None:
    code, _, err = run(*words)
    assert code == 1
    assert err.startswith(f"error: {option}: without effect {reason}")


def test_a_plan_says_what_its_stages_are_and_how_old_its_speeds(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.recipes.machine.SECONDS_PER_PROBE", 0.0)
    monkeypatch.setattr("lilliput.recipes.machine._import_seconds", lambda: 1.0)
    _, out, _ = run("plan", model, "--to", "Q8_0")
    assert "choosing codes" in out
    assert re.search(r"measured now( beside other work, so rather too long; kept 1 hour|; kept 3 days) in ", out)
    assert json.loads(run("plan", model, "--to", "Q8_0", "--json")[1])["speeds_age"] < 60


def test_the_plan_of_a_search_says_whether_the_size_is_within_reach(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.recipes.machine.SECONDS_PER_PROBE", 0.0)
    monkeypatch.setattr("lilliput.recipes.machine._import_seconds", lambda: 1.0)
    words = ("plan", model, "--text", "builtin", "--effort", "fast", "--formats", "q4_0,q8_0")
    limits = json.loads(run(*words, "--size", "1GB", "--json")[1])
    middle = (limits["smallest"] + limits["largest"]) // 2
    assert "within reach: the file will have at most" in run(*words, "--size", f"{middle}B")[1]
    assert "leaves room for the largest" in run(*words, "--size", "1GB")[1]
    code, _, err = run(*words, "--size", "1kB")
    assert (code, f"{limits['smallest']:,}" in err) == (1, True)


def test_a_context_longer_than_the_model_is_refused(run: Run, model: Path, tmp_path: Path, text: Path) -> None:
    code, _, err = run("eval", model, model, "--text", text, "--context", 4096)
    assert code == 1
    assert "4096" in err
    assert "512" in err


def test_the_mix_is_said_before_any_work(run: Run, model: Path, tmp_path: Path) -> None:
    _, _, err = run("quantize", model, "--to", "Q8_0", "-o", tmp_path / "tiny.gguf")
    assert err.startswith("plan Q8_0: ")
    assert "Q8_0, 5 F32" in err


def test_no_words_show_the_help_and_version_is_told(run: Run) -> None:
    code, out, _ = run()
    assert (code, "quantize" in out) == (0, True)
    assert run("--version")[1].startswith("lilliput ")


def test_wrong_usage_exits_with_2(run: Run) -> None:
    assert run("quantize")[0] == 2
    assert run("quantize", "model", "--no-such-option")[0] == 2


def test_an_interrupt_exits_with_130_and_leaves_nothing(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lilliput.pipeline.quantize_tensors._quantize_slab", interrupted)
    folder = tmp_path / "output"
    folder.mkdir()
    code, out, err = run("quantize", model, "--to", "Q8_0", "-o", folder / "out.gguf", "--json")
    assert (code, json.loads(out)["error"]["message"]) == (130, "interrupted")
    assert err.endswith("interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "guliver"), "did you mean 'gulliver'?"),
        (("quantize", "gulliver", "--to", "Q4_0", "--method", "gptq"), "unknown method 'gptq': here it is 'feedback'"),
        (("quantize", "gulliver", "--to", "Q4_0", "--method", "awq"), "--transform awq_scaling"),
        (("quantize", "gulliver", "--to", "Q4_0", "--imatrix", __file__), "nor an imatrix of llama.cpp"),
    ],
)
def test_names_that_people_try_are_answered_with_ours(run: Run, words: tuple[str, ...], said: str) -> None:
    code, _, err = run(*words)
    assert code == 1
    assert said in err
