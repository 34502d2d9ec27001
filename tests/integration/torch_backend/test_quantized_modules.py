# SPDX-License-Identifier: Apache-2.0
"""Quantized modules: the same integers on the kernel and in plain PyTorch, in place of any model's layers."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch

import lilliput.torch as lt
from lilliput.activations import FixedScale
from lilliput.errors import CalibrationError, FormatError, RecipeError
from lilliput.torch_backend.operators import blocks_linear, decode, integer_linear, reference_linear
from lilliput.torch_backend.panels import from_panels, rows_of_panels, to_panels

INTEGER_WEIGHTS = (
    "int8_channel",
    "int8_channel_asym",
    "int4_g32",
    "int8_tensor",
    "Q8_0",
    "Q6_K",
    "mxfp4",
    "ternary_g128",
)
INPUTS = ("int8_token", "int8_token_asym", "int4_token", "int8_static_asym")


def linear(columns: int = 256, rows: int = 40, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(columns, rows, bias=bias)


def network() -> torch.nn.Sequential:
    torch.manual_seed(4)
    return torch.nn.Sequential(
        torch.nn.Embedding(50, 64), torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64, bias=False),
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 50),
    ).eval()  # fmt: skip


def ids() -> torch.Tensor:
    return torch.arange(14).reshape(2, 7) * 3


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("weight", INTEGER_WEIGHTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_kernel_and_plain_torch_give_the_same_bits(weight: str, inputs: str) -> None:
    fixed = FixedScale(0.03, 100) if "static" in inputs else None
    layer = lt.QuantizedLinear.from_float(linear(), f"{weight}/{inputs}", fixed=fixed)
    view = layer.execution()
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1))
    arguments = (x, list(view.weight), layer.bias, [40, 256], inputs)
    static = [fixed.scale, fixed.zero_point] if fixed else []
    found = layer(x)
    assert torch.equal(found, reference_linear(*arguments, static))
    assert torch.equal(found, integer_linear(*arguments, static))


@pytest.mark.parametrize("weight", INTEGER_WEIGHTS)
def test_integer_layers_compute_with_the_values_that_the_file_holds(weight: str) -> None:
    layer = lt.QuantizedLinear.from_float(linear(), f"{weight}/int8_token")
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.linear(x, layer.dequantized_weight(), layer.bias)
    # Inputs are within half a step of 1/127 of their largest.
    bound = (x.abs().amax(1, keepdim=True) / 254) * layer.dequantized_weight().abs().sum(1)
    assert ((layer(x) - wanted).abs() <= bound * 1.01 + 1e-5).all()


@pytest.mark.parametrize(
    "name", ["Q4_K", "Q6_K", "int4_g128", "nf4", "fp8_e4m3_channel", "iq4_xs", "bf16", "palette4_rows16"]
)
def test_any_format_works_with_float_inputs(name: str) -> None:
    source = linear()
    layer = lt.QuantizedLinear.from_float(source, name)
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.linear(x, layer.dequantized_weight(), source.bias)
    # Only the order of the sum differs.
    assert torch.allclose(layer(x), wanted, atol=2e-4)
    assert relative(layer(x), source(x)) < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_come_out_as_they_went_in(dtype: torch.dtype) -> None:
    layer = lt.QuantizedLinear.from_float(linear(), "W8A8-dynamic")
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


def test_non_contiguous_empty_and_single_inputs_work() -> None:
    layer = lt.QuantizedLinear.from_float(linear(), "W8A8-dynamic")
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(layer(x.T), layer(x.T.contiguous()))
    assert layer(torch.zeros(0, 256)).shape == (0, 40)
    assert torch.equal(layer(x.T[0]), layer(x.T)[0])


def test_weights_without_integer_arithmetic_are_refused_for_integer_inputs() -> None:
    for name in ("nf4/int8_token", "Q4_K/int8_token", "fp8_e4m3_channel/int8_g32"):
        with pytest.raises(RecipeError, match="no integer arithmetic"):
            lt.get_scheme(name)
    with pytest.raises(RecipeError, match="schemes: W8A8-dynamic"):
        lt.get_scheme("W9A9")


def test_rows_that_do_not_fit_a_format_are_refused_by_name() -> None:
    with pytest.raises(FormatError, match="multiple of Q4_K"):
        lt.QuantizedLinear.from_float(linear(96), "Q4_K")


def test_panels_hold_every_code_where_it_can_be_found_again() -> None:
    codes = torch.arange(37 * 10, dtype=torch.int32).to(torch.int8).reshape(37, 10)
    panels = to_panels(codes)
    assert panels.shape == (4, 3, 16, 4)
    assert torch.equal(from_panels(panels, 37, 10), codes)
    rows = torch.tensor([36, 0, 17])
    assert torch.equal(rows_of_panels(panels, rows, 10), codes[rows])


@pytest.mark.parametrize("name", ["int8_channel", "int8_channel_asym", "int4_g32", "Q8_0", "int8_tensor", "nf4"])
def test_an_embedding_looks_up_the_rows_of_its_decoded_table(name: str) -> None:
    torch.manual_seed(5)
    table = lt.QuantizedEmbedding.from_float(torch.nn.Embedding(30, 64), name)
    rows = torch.tensor([[0, 29], [7, 7]])
    assert torch.equal(table(rows), table.dequantized_weight()[rows])


class ShiftedTable(torch.nn.Embedding):
    """Looks up in a way of its own, as BART's positions do."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows + 2, columns)
        self.offset = 2

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return super().forward(numbers + self.offset) * 3


def test_a_table_with_a_forward_of_its_own_keeps_it() -> None:
    torch.manual_seed(8)
    model = torch.nn.Sequential(ShiftedTable(30, 64))
    lt.quantize_(model, "int8_channel/int8_token")
    rows = torch.tensor([[0, 29], [7, 7]])
    assert isinstance(model[0], ShiftedTable)
    assert torch.equal(model(rows), model[0].dequantized_weight()[rows + 2] * 3)
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    for twin in (copy.deepcopy(model), torch.load(kept, weights_only=False)):
        assert torch.equal(twin(rows), model(rows))


def test_an_embedding_whose_rows_share_scales_is_refused() -> None:
    with pytest.raises(FormatError, match="rows share scales"):
        lt.QuantizedEmbedding.from_float(torch.nn.Embedding(30, 64), "palette4_rows16")


def test_quantize_replaces_linear_and_embedding_modules_and_says_what_they_cost() -> None:
    model = network()
    wanted = model(ids())
    report = lt.quantize_(model, "W8A8-dynamic")
    assert [type(module).__name__ for module in model] == [
        "QuantizedEmbedding", "QuantizedLinear", "GELU", "QuantizedLinear", "LayerNorm", "QuantizedLinear",
    ]  # fmt: skip
    assert relative(model(ids()), wanted) < 0.03
    assert report.stored_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert report.float_bytes == sum(4 * parameter.numel() for parameter in network().parameters())
    assert "int8_channel/int8_token" in str(report)
    heading, *lines, _ = str(report).splitlines()
    assert {line.index("Quantized") for line in lines if "Quantized" in line} == {heading.index("kind")}


def test_what_stays_float_is_in_the_report_with_its_reason() -> None:
    model = torch.nn.ModuleDict(
        {
            "body": torch.nn.Linear(64, 8),
            "head": torch.nn.Linear(64, 8),
            "narrow": torch.nn.Linear(30, 8),
            "image": torch.nn.Conv2d(3, 4, 3),
            "attention": torch.nn.MultiheadAttention(32, 2),
            "bounded": torch.nn.Embedding(9, 32, max_norm=1.0),
        }
    )
    report = lt.quantize_(model, "Q8_0", keep=["he*"])
    notes = {row.name: row.note for row in report.kept}
    assert notes.keys() == {"head", "narrow", "image", "attention", "attention.out_proj", "bounded"}
    assert notes["head"] == "kept by the recipe"
    assert "not a multiple" in notes["narrow"]
    assert "Conv2d" in notes["image"]


def test_a_recipe_gives_modules_their_schemes_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "name: mixed\nrules:\n"
        "  - {modules: 're:^3$', keep: true}\n"
        "  - {modules: '1', scheme: int4_g32/int8_token_asym}\n"
        "  - {kind: embedding, scheme: Q8_0}\n"
        "  - {scheme: W8A16}\n"
    )
    report = lt.quantize_(network(), path)
    assert {row.name: row.scheme for row in report.rows} == {
        "0": "q8_0", "1": "int4_g32/int8_token_asym", "3": "", "4": "", "5": "int8_channel/f32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"scheme": "W8A8-dynamic", "keep": True}], "either a scheme or keep"),
        ([{"modules": "re:("}], "either a scheme or keep"),
        ([{"modules": "re:(", "keep": True}], "not a regular expression"),
        ([{"scheme": "int8_channel/int8_static", "ranges": "best"}], "min_max, percentile"),
        ([{"scheme": "nosuch"}], "unknown number format"),
        ([{"formt": "x"}], "formt"),
        ([{"keep": True}], "no module of this model"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_reason(rules: list[dict[str, object]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        lt.quantize_(network(), {"rules": rules})


def test_a_weight_that_two_modules_share_is_stored_once() -> None:
    model = network()
    model[5].weight = model[0].weight
    report = lt.quantize_(model, "W8A8-dynamic")
    wanted = model(ids())
    assert report.stored_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert "5.weight_codes" not in model.state_dict()
    assert model[5].weight_codes is model[0].weight_codes
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids()), wanted)
    assert twin[5].weight_codes is twin[0].weight_codes
    other = network()
    other[5].weight = other[0].weight
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    lt.quantize_(other, "W8A8-dynamic")
    other(ids())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids()), wanted)


def test_state_dicts_show_codes_in_rows_and_bring_them_back() -> None:
    model = network()
    lt.quantize_(model, "W8A8-dynamic")
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert saved["1.weight_codes"].shape == (96, 64)
    assert saved["1.weight_codes"].dtype == torch.uint8
    wanted = model(ids())
    for plane in (module.weight_scale for module in model if hasattr(module, "weight_scale")):
        plane.zero_()
    model.load_state_dict(saved)
    assert torch.equal(model(ids()), wanted)


def test_casting_a_model_keeps_its_scales() -> None:
    model = network()
    lt.quantize_(model, "W8A8-dynamic")
    scale = model[1].weight_scale.clone()
    wanted = model(ids())
    model.to(torch.bfloat16)
    assert torch.equal(model[1].weight_scale, scale)
    assert model(ids()).dtype == torch.bfloat16
    assert relative(model(ids()).float(), wanted) < 0.05


def test_the_weight_of_a_layer_looks_like_the_float_one_to_code_that_asks() -> None:
    layer = lt.QuantizedLinear.from_float(linear(), "W8A8-dynamic")
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == ((40, 256), torch.float32, "cpu")
    x = torch.ones(2, 256)
    assert torch.equal(torch.nn.functional.linear(x, layer.weight), x @ layer.dequantized_weight().T)
    assert torch.equal(layer.weight.sum(0), layer.dequantized_weight().sum(0))


@pytest.mark.parametrize("scheme", ["W8A8-static", "FP8-static", "int8_channel/int8_static"])
@pytest.mark.parametrize("ranges", ["min_max", "mse", "percentile", "entropy"])
def test_static_inputs_take_their_ranges_from_calibration(scheme: str, ranges: str) -> None:
    model = network()
    wanted = model(ids())
    lt.quantize_(model, {"rules": [{"scheme": scheme, "ranges": ranges}]}, calibration=[(ids(),)])
    assert model[1].input_scale > 0
    assert relative(model(ids()), wanted) < 0.15


def test_static_schemes_without_data_and_layers_never_reached_are_refused() -> None:
    with pytest.raises(CalibrationError, match="give calibration="):
        lt.quantize_(network(), "W8A8-static")
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(4, 4), "unused": torch.nn.Linear(4, 4)})
    with pytest.raises(CalibrationError, match="unused: the calibration data never reached"):
        lt.quantize_(model, "W8A8-static", calibration=lambda network: network["used"](torch.ones(1, 4)))


def test_smoothing_helps_where_a_few_inputs_are_large() -> None:
    torch.manual_seed(6)
    inputs = torch.randn(64, 128)
    inputs[:, ::32] *= 60
    wanted_model = torch.nn.Sequential(torch.nn.Linear(128, 64))
    errors = []
    for strength in (0.0, 0.5):
        model = copy.deepcopy(wanted_model)
        rule = {"scheme": "W8A8-dynamic", "smoothing": strength}
        lt.quantize_(model, {"rules": [rule]}, calibration=[inputs])
        errors.append(relative(model(inputs), wanted_model(inputs)))
    assert errors[1] < 0.5 * errors[0]


def test_columns_with_outliers_stay_floats() -> None:
    torch.manual_seed(7)
    source = torch.nn.Linear(128, 64)
    inputs = torch.randn(64, 128)
    inputs[:, 5] *= 60
    plain, split = (lt.QuantizedLinear.from_float(source, name) for name in ("W8A8-dynamic", "LLM.int8"))
    assert relative(split(inputs), source(inputs)) < 0.3 * relative(plain(inputs), source(inputs))
    calm = inputs.clamp(-3, 3)
    assert torch.equal(split(calm), plain(calm))


def test_the_operators_are_what_pytorch_expects_of_operators() -> None:
    layer = lt.QuantizedLinear.from_float(linear(), "W8A8-dynamic")
    view = layer.execution()
    x = torch.randn(3, 256)
    checks = ("test_schema", "test_faketensor")
    arguments = (x, list(view.weight), layer.bias.detach(), [40, 256], "int8_token", [])
    torch.library.opcheck(integer_linear, arguments, test_utils=checks)
    blocks = lt.QuantizedLinear.from_float(linear(), "Q4_K")
    torch.library.opcheck(blocks_linear, (x, blocks.weight_blocks, None, "q4_k", True), test_utils=checks)
    torch.library.opcheck(decode, ([blocks.weight_blocks], "q4_k", 256), test_utils=checks)


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "Q8_0", "int4_g32"])
def test_a_compiled_model_has_no_break_and_gives_the_same(scheme: str) -> None:
    model = network()
    lt.quantize_(model, scheme)
    with torch.no_grad():
        wanted = model(ids())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(ids()), wanted)


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "Q4_K"])
def test_gradients_are_refused_with_what_to_do_instead(scheme: str) -> None:
    layer = lt.QuantizedLinear.from_float(linear(), scheme)
    x = torch.randn(2, 256, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no gradient \(autograd\).*Train the float model"):
        layer(x).sum().backward()


def test_a_second_time_is_told_as_such() -> None:
    model = network()
    lt.quantize_(model)
    with pytest.raises(RecipeError, match=r"quantized already \(4 modules\).*float model"):
        lt.quantize_(model, "W4A16")
    with pytest.raises(RecipeError, match="quantized already"):
        lt.quantize_(model[1])


def test_a_model_of_convolutions_alone_says_what_it_has() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.LSTM(8, 8)
    )
    with pytest.raises(RecipeError, match=r"only 2 Conv2d, 1 LSTM"):
        lt.quantize_(model)


def test_what_is_no_model_is_refused_by_what_it_is() -> None:
    with pytest.raises(RecipeError, match=r"'bert-base' is a name; load it first"):
        lt.quantize_("bert-base")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="this is the class Linear"):
        lt.quantize_(torch.nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="this is a dict"):
        lt.quantize_({})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("W8A8", "'W8A8-dynamic' or 'W8A8-static'"),
        ("w8a8_dynamic", "'W8A8-dynamic'"),
        ("fp8", "'FP8-dynamic' or 'FP8-static'"),
        ("LLM.int4", "'LLM.int8'"),
    ],
)
def test_a_wrong_scheme_suggests_the_near_one(wrong: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=rf"unknown scheme '{wrong}': did you mean {meant}"):
        lt.quantize_(network(), wrong)


def test_a_missing_recipe_file_and_a_recipe_of_another_type_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        with pytest.raises(RecipeError, match=r"mine\.yaml: no such file"):
            lt.quantize_(network(), path)
    with pytest.raises(RecipeError, match="the recipe is a int"):
        lt.quantize_(network(), 8)  # type: ignore[arg-type]


def test_inputs_on_the_meta_device_give_shapes() -> None:
    layer = lt.QuantizedLinear.from_float(linear(), "W8A8-dynamic").to("meta")
    assert layer(torch.empty(2, 3, 256, device="meta")).shape == (2, 3, 40)


def test_weights_that_are_not_finite_stay_float_and_are_reported() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    report = lt.quantize_(model)
    assert "infinities or NaNs" in {row.name: row.note for row in report.kept}["1"]
    assert isinstance(model[1], torch.nn.Linear)
    assert np.isfinite(report.stored_bytes)
