"""The public ``cpu_kernel``: what its source sees, how it is called, and how it fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_autoperfect
from mlx_autoperfect.errors import AutoperfectError, Failure, Reason, Stage, UnavailableError
from mlx_autoperfect_cpu import cpu_kernel as module
from mlx_autoperfect_cpu import kernel_source
from mlx_autoperfect_cpu.cpu_kernel import KernelCompileError, cpu_kernel

pytestmark = pytest.mark.usefixtures("backend")

DOC = Path(__file__).parents[2] / "docs" / "cpu_kernel.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
DTYPES = [
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.float64, mx.complex64,
]  # fmt: skip


def elementwise(source: str, x: mx.array, dtype: mx.Dtype | None = None, **arguments: Any) -> mx.array:
    kernel = cpu_kernel("elementwise", ["x"], ["out"], f"uint32_t i = thread_position_in_grid.x; {source}")
    result = kernel(
        inputs=[x], grid=(x.size, 1, 1), output_shapes=[x.shape], output_dtypes=[dtype or x.dtype], **arguments
    )
    return result[0]


def once(source: str, inputs: dict[str, Any], size: int, dtype: mx.Dtype = mx.float32, **arguments: Any) -> list[Any]:
    kernel = cpu_kernel("once", list(inputs), ["out"], source)
    result = kernel(inputs=list(inputs.values()), output_shapes=[(size,)], output_dtypes=[dtype], **arguments)
    return listed(result[0])


def listed(x: mx.array) -> list[Any]:
    values: Any = x.tolist()
    return list(values)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_documentation(number: int) -> None:
    assert len(EXAMPLES) == 2
    exec(compile(EXAMPLES[number], f"{DOC.name} example {number}", "exec"), {})


def test_is_the_public_function() -> None:
    assert mlx_autoperfect.cpu_kernel is cpu_kernel


def test_every_dtype() -> None:
    inputs = [(mx.arange(300) % 7).astype(dtype) for dtype in DTYPES]
    names = [f"x{n}" for n in range(len(DTYPES))]
    kernel = cpu_kernel(
        "dtypes",
        names,
        [f"out_{name}" for name in names],
        "int i = thread_position_in_grid.x;" + "".join(f"out_{name}[i] = {name}[299 - i];" for name in names),
    )
    outs = kernel(inputs=inputs, grid=(300, 1, 1), output_shapes=[(300,)] * len(DTYPES), output_dtypes=DTYPES)
    for x, out in zip(inputs, outs, strict=True):
        assert out.dtype == x.dtype
        assert mx.array_equal(out, mx.take(x, mx.arange(299, -1, -1)))


@pytest.mark.parametrize("soft", [False, True], ids=["processor", "software"])
def test_narrow_floats_convert_like_mlx(soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if soft:
        original = kernel_source.render
        monkeypatch.setattr(module, "render", lambda *arguments: "#define AP_SOFT_HALF\n" + original(*arguments))
    kernel = cpu_kernel(
        "narrow",
        ["half", "brain", "single"],
        ["wide_half", "wide_brain", "to_half", "to_brain"],
        """
        uint32_t i = thread_position_in_grid.x;
        if (i < half_shape[0]) { wide_half[i] = half[i]; wide_brain[i] = brain[i]; }
        to_half[i] = single[i];
        to_brain[i] = single[i];
        """,
    )
    patterns = mx.arange(65536).astype(mx.uint16)
    half, brain = patterns.view(mx.float16), patterns.view(mx.bfloat16)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (np.arange(65536, dtype=np.uint32) << 16) + rng.choice([0x7FFF, 0x8000, 0x8001], 65536).astype(np.uint32)
    half_ties = np.array(half.astype(mx.float32)).view(np.uint32)
    half_ties += rng.choice([0xFFF, 0x1000, 0x1001], 65536).astype(np.uint32)
    small = rng.normal(0, 3e-5, 50_000).astype(np.float32).view(np.uint32)
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, -65520, 2**-24, 2**-25, 3e38], np.float32)
    single = mx.array(np.concatenate([bits, ties, half_ties, small, edges.view(np.uint32)])).view(mx.float32)
    outs = kernel(
        inputs=[half, brain, single],
        grid=(single.size, 1, 1),
        output_shapes=[half.shape, half.shape, single.shape, single.shape],
        output_dtypes=[mx.float32, mx.float32, mx.float16, mx.bfloat16],
    )
    exact = [half.astype(mx.float32), brain.astype(mx.float32), single.astype(mx.float16), single.astype(mx.bfloat16)]
    for out, expected in zip(outs, exact, strict=True):
        assert mx.array_equal(out, expected, equal_nan=True)


def test_arithmetic_of_narrow_floats() -> None:
    x = mx.array([1.5, -2.0, 100.0]).astype(mx.float16)
    source = "T y = x[i]; y += 1; y *= x[i]; y -= 0.5f; y /= 2.0; out[i] = y > T(0) ? y : T(-y);"
    expected = np.array(x).astype(np.float32)
    expected = np.abs(((expected + 1) * expected - 0.5) / 2)
    for dtype in (mx.float16, mx.bfloat16):
        got = elementwise(source, x.astype(dtype), template=[("T", dtype)])
        assert np.allclose(got.astype(mx.float32), expected, rtol=1e-2)


def test_grid_covers_every_point_once() -> None:
    kernel = cpu_kernel(
        "points",
        [],
        ["count", "code"],
        """
        uint3 p = thread_position_in_grid;
        int64_t i = (int64_t(p.z) * threads_per_grid.y + p.y) * threads_per_grid.x + p.x;
        count[i] += 1;
        code[i] = p.x + 100 * p.y + 10000 * p.z;
        """,
    )
    for shape in [(1, 1, 1), (2, 3, 5), (7, 1, 97), (1, 50, 1), (3, 33, 10)]:
        for threads in (None, 1, 2, 5):
            count, code = kernel(
                inputs=[], grid=shape[::-1], output_shapes=[shape, shape], output_dtypes=[mx.int32, mx.int32],
                init_value=0, threads=threads,
            )  # fmt: skip
            z, y, x = np.indices(shape)
            assert np.array(count).min() == np.array(count).max() == 1
            assert np.array_equal(np.array(code), x + 100 * y + 10000 * z)


def test_a_return_ends_one_point_only() -> None:
    out = elementwise("if (i % 2) return; out[i] = x[i];", mx.arange(6), init_value=-1)
    assert out.tolist() == [0, -1, 2, -1, 4, -1]


def test_an_empty_grid_or_output_runs_nothing() -> None:
    kernel = cpu_kernel("empty", [], ["out"], "out[thread_position_in_grid.x] = 1;")
    filled = kernel(inputs=[], grid=(0, 1, 1), output_shapes=[(3,)], output_dtypes=[mx.float32], init_value=5)
    assert filled[0].tolist() == [5, 5, 5]
    assert kernel(inputs=[], grid=(0, 1, 1), output_shapes=[(0, 4)], output_dtypes=[mx.float32])[0].shape == (0, 4)


def test_scalars() -> None:
    source = "out[0] = a + b + (flag ? 100 : 0) + half_of; static_assert(std::is_same_v<decltype(a), const int32_t&>);"
    inputs = {"a": 3, "b": 0.5, "flag": True, "half_of": mx.array(0.25, dtype=mx.bfloat16)}
    assert once(source, inputs, 1) == [103.75]
    assert once(source, {**inputs, "a": 4, "flag": False}, 1) == [4.75]


def test_template_arguments() -> None:
    source = "static_assert(std::is_same_v<T, float>); for (int i = 0; i < N; ++i) out[i] = flag ? T(i) : T(big);"
    for flag in (True, False, True):
        template = [("T", mx.float32), ("N", 4), ("flag", flag), ("big", 2**40)]
        assert once(source, {}, 4, template=template) == ([0, 1, 2, 3] if flag else [2.0**40] * 4)
    assert once("out[0] = flag;", {}, 1, template=[("flag", 1)]) == [1]
    assert once("static_assert(sizeof(flag) == 1); out[0] = flag;", {}, 1, template=[("flag", True)]) == [1]


def test_init_value() -> None:
    kernel = cpu_kernel("fill", [], [f"out{n}" for n in range(len(DTYPES))], "")

    def filled(value: float) -> dict[mx.Dtype, Any]:
        outs = kernel(
            inputs=[], output_shapes=[(1000,)] * len(DTYPES), output_dtypes=DTYPES, init_value=value, threads=3
        )
        values = {dtype: set(listed(out)) for dtype, out in zip(DTYPES, outs, strict=True)}
        assert all(len(seen) == 1 for seen in values.values())
        return {dtype: seen.pop() for dtype, seen in values.items()}

    assert filled(1) == dict.fromkeys(DTYPES, 1)
    assert {filled(1.5)[dtype] for dtype in (mx.float16, mx.bfloat16, mx.float32, mx.float64)} == {1.5}
    assert filled(-2)[mx.int8] == -2
    assert filled(2**53 + 1)[mx.int64] == 2**53 + 1
    assert filled(0.1)[mx.float64] == 0.1
    assert filled(float("-inf"))[mx.float32] == float("-inf")


def test_shape_strides_and_ndim() -> None:
    source = "out[0] = x_ndim; for (int k = 0; k < x_ndim; ++k) { out[1 + k] = x_shape[k]; out[4 + k] = x_strides[k]; }"
    x = mx.zeros((4, 5, 6))
    view = x.transpose(2, 0, 1)[::2]
    for contiguous, strides in ((True, [20, 5, 1]), (False, [2, 30, 6])):
        kernel = cpu_kernel("view", ["x"], ["out"], source, ensure_row_contiguous=contiguous)
        out = kernel(inputs=[view], output_shapes=[(7,)], output_dtypes=[mx.int64])[0]
        assert out.tolist() == [3, 3, 4, 5, *strides]


def test_non_contiguous_input_is_copied_unless_told_not_to() -> None:
    x = mx.arange(12).reshape(3, 4)
    assert mx.array_equal(elementwise("out[i] = x[i];", x.T), x.T)
    wide = mx.broadcast_to(x[:, :1], (3, 5))
    assert mx.array_equal(elementwise("out[i] = x[i];", wide), wide)


def test_lazy_and_compiled() -> None:
    function = mx.compile(lambda x: elementwise("out[i] = x[i] * 2;", x + 1) + 1)
    for size in (3, 3, 8):
        assert function(mx.arange(size)).tolist() == [2 * (n + 1) + 1 for n in range(size)]


def test_one_kernel_serves_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = cpu_kernel("shapes", ["x"], ["out"], "uint32_t i = thread_position_in_grid.x; out[i] = x[i] + 1;")

    def call(x: mx.array) -> mx.array:
        return kernel(inputs=[x], grid=(x.size, 1, 1), output_shapes=[x.shape], output_dtypes=[x.dtype])[0]

    assert call(mx.zeros((2, 3))).tolist() == [[1] * 3] * 2
    monkeypatch.setattr(module, "load_backend", lambda: pytest.fail("prepared again"))
    assert call(mx.zeros((5, 1))).tolist() == [[1]] * 5


def test_a_compile_error_points_to_the_users_line() -> None:
    kernel = cpu_kernel("wrong", ["x"], ["out"], "\nfloat a = x[0];\nout[0] = a + missing;\n")
    with pytest.raises(KernelCompileError) as caught:
        kernel(inputs=[mx.zeros(1)], output_shapes=[(1,)], output_dtypes=[mx.float32])
    assert isinstance(caught.value, AutoperfectError)
    assert "cpu_kernel 'wrong' does not compile" in str(caught.value)
    assert re.search(r"^wrong:3:\d+: error:.*missing", caught.value.log, re.MULTILINE)


def test_a_compile_error_in_the_header() -> None:
    kernel = cpu_kernel("wrong", [], ["out"], "out[0] = 1;", header="\n\nint f() { return none; }")
    with pytest.raises(KernelCompileError, match=r"wrong \(header\):3:"):
        kernel(inputs=[], output_shapes=[(1,)], output_dtypes=[mx.float32])


def test_source_that_ends_in_a_comment() -> None:
    assert once("out[0] = 1; // done", {}, 1) == [1]


def test_verbose_prints_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    once("out[0] = 42;", {}, 1, verbose=True)
    assert "out[0] = 42;" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "1x", "a-b", "eps_1e-08", "float", "a b", "a;", "a__b", "x\n"])
def test_bad_names(name: str) -> None:
    for kernel, inputs, outputs in ((name, ["x"], ["y"]), ("k", [name], ["y"]), ("k", ["x"], [name])):
        with pytest.raises(ValueError, match="not an identifier"):
            cpu_kernel(kernel, inputs, outputs, "")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["x"], ["x"], "used twice"),
        (["thread_position_in_grid"], ["y"], "is taken"),
        (["ap_body"], ["y"], "is taken"),
        (["float16_t"], ["y"], "is taken"),
        (["x"], [], "at least one output"),
    ],
)
def test_names_that_clash(inputs: list[str], outputs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu_kernel("k", inputs, outputs, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "inputs has 0 entries, the kernel names 1"),
        ({"output_shapes": []}, "output_shapes has 0 entries"),
        ({"output_dtypes": [mx.float32] * 2}, "output_dtypes has 2 entries"),
        ({"grid": (1, 2)}, "grid is three sizes"),
        ({"grid": (1, -1, 1)}, "grid is three sizes"),
        ({"output_shapes": [(-1,)]}, "cannot be negative"),
        ({"template": [("T", "float")]}, "template 'T' is a dtype, int or bool, not str"),
        ({"template": [("1T", 1)]}, "not an identifier"),
        ({"threads": 0}, "threads is 1 or more"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    kernel = cpu_kernel("k", ["x"], ["out"], "out[0] = x[0];")
    valid: dict[str, Any] = {"inputs": [mx.zeros(1)], "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    assert kernel(**valid)[0].tolist() == [0]
    with pytest.raises(ValueError, match=message):
        kernel(**(valid | arguments))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(Stage.SETUP, Reason.NO_COMPILER, "no C++ compiler found")
    monkeypatch.setattr(module, "load_backend", lambda: failure)
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler found") as caught:
        once("out[0] = 1;", {}, 1)
    assert caught.value.failure is failure


def test_source_text_is_not_taken_for_a_format() -> None:
    assert once('out[0] = sizeof("%d {x} \\\\n") > 0;', {}, 1) == [1]
