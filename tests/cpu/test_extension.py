"""Plans of kernel steps as nodes of MLX's graph: laziness, memory, strides, threads, and clear errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_autoperfect_cpu import extension
from mlx_autoperfect_cpu.build import Library, SourceUnit
from mlx_autoperfect_cpu.compiler import CompilerRuns
from mlx_autoperfect_cpu.extension import Backend, build_extension, load_backend, load_extension
from mlx_autoperfect_cpu.headers import Headers, find_headers

KERNELS = """
#include "abi.h"
static int64_t size(const ap_array& a) {
  int64_t n = 1;
  for (int64_t i = 0; i < a.ndim; ++i) n *= a.shape[i];
  return n;
}
static float* floats(const ap_array& a) { return static_cast<float*>(a.data); }
extern "C" void add(const ap_ctx* c) {
  const int64_t n = size(c->out[0]);
  for (int64_t i = n * c->tid / c->nthreads; i < n * (c->tid + 1) / c->nthreads; ++i)
    floats(c->out[0])[i] = floats(c->in[0])[i] + floats(c->in[1])[i];
}
// Reads a matrix through its strides; writes it followed by the strides themselves.
extern "C" void strided(const ap_ctx* c) {
  const ap_array& a = c->in[0];
  if (c->tid != 0) return;
  float* out = floats(c->out[0]);
  for (int32_t i = 0; i < a.shape[0]; ++i)
    for (int32_t j = 0; j < a.shape[1]; ++j) *out++ = floats(a)[i * a.strides[0] + j * a.strides[1]];
  for (int64_t i = 0; i < a.ndim; ++i) *out++ = static_cast<float>(a.strides[i]);
}
// Every thread writes its share of scratch, waits, and sums all of it: wrong without barrier or team.
extern "C" void exchange(const ap_ctx* c) {
  const int64_t n = c->symbols[0];
  float* scratch = static_cast<float*>(c->scratch);
  for (int64_t i = n * c->tid / c->nthreads; i < n * (c->tid + 1) / c->nthreads; ++i)
    scratch[i] = floats(c->in[0])[i];
  ap_barrier(c);
  for (int64_t chunk; (chunk = ap_next_chunk(c)) < n;) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += scratch[(chunk + i) % n];
    floats(c->out[0])[chunk] = sum + scratch[chunk];
  }
}
extern "C" void report(const ap_ctx* c) {
  if (c->tid != 0) return;
  floats(c->out[0])[0] = static_cast<float>(c->nthreads);
  floats(c->out[0])[1] = static_cast<float>(c->symbols[1]);
  floats(c->out[0])[2] = static_cast<float>(reinterpret_cast<uintptr_t>(c->scratch) % 64);
  floats(c->out[0])[3] = static_cast<float>(c->team->chunk.load());
}
// Thread 0 is late: whoever does not wait for it reads what it has not yet written.
extern "C" void late(const ap_ctx* c) {
  for (int i = 0; c->tid == 0 && i < 20000; ++i) ap_pause();
  const int64_t n = c->symbols[0];
  for (int64_t i = n * c->tid / c->nthreads; i < n * (c->tid + 1) / c->nthreads; ++i)
    floats(c->out[0])[i] = floats(c->in[0])[n - 1 - i] + 1;
}
extern "C" void nothing(const ap_ctx*) {}
"""

SLOW = """
#include <unistd.h>
#include "abi.h"
extern "C" void slow(const ap_ctx*) {
  usleep(200000);
  if (write(1, "done\\n", 5) != 5) _exit(3);
}
"""

N = (1, 0)
VECTOR = (mx.float32, 1, [N], True)


@pytest.fixture(scope="module")
def native(backend: Backend) -> ModuleType:
    return backend.module


@pytest.fixture(scope="module")
def library(backend: Backend) -> Library:
    loaded = backend.cache.compile_and_load([SourceUnit("kernels", KERNELS)], backend.toolchain)[0]
    assert isinstance(loaded, Library), str(loaded)
    return loaded


@pytest.fixture
def sum3(native: ModuleType, library: Library) -> Any:
    """a + b + c in two steps through a temporary."""
    add = library.address("add")
    inputs = [(*VECTOR, name) for name in ("a", "b", "c")]
    steps: list[Any] = [(add, [0, 1], [4], 0, []), (add, [4, 2], [3], 0, [])]
    return native.Plan(steps, inputs, [(mx.float32, [N])], [(mx.float32, [N])], threads=2, name="sum3", keep=library)


@pytest.fixture
def poison(native: ModuleType) -> Iterator[Callable[[int | None], None]]:
    yield native.set_poison
    native.set_poison(None)


def vector(*values: float) -> mx.array:
    return mx.array(values, dtype=mx.float32)


def test_the_module_is_loaded_once(backend: Backend) -> None:
    assert load_backend() is backend
    assert load_extension() is backend.module
    assert backend.module.shares_mlx()
    assert backend.module.threads() >= 1


def test_number_of_threads_comes_from_the_settings(backend: Backend) -> None:
    code = "from mlx_autoperfect_cpu.extension import load_extension; print(load_extension().threads())"
    environment = {**os.environ, "AUTOPERFECT_THREADS": "5", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"


def test_steps_run_in_order_through_a_temporary(sum3: Any) -> None:
    for n in (1, 2, 3, 1000, 100_003):
        a, b, c = (mx.random.normal((n,)) for _ in range(3))
        (out,) = sum3([a, b, c], [n])
        assert out.shape == (n,)
        assert out.dtype == mx.float32
        assert mx.array_equal(out, a + b + c)


def test_is_lazy_and_composes(sum3: Any) -> None:
    x = vector(1, 2, 3)
    y = sum3((x * 2, x, x), [3])[0]
    z = sum3([y, y, x], (3,))[0] + 1
    assert z.tolist() == [10, 19, 28]


def test_async_eval(sum3: Any) -> None:
    x = mx.ones((5000,))
    outs = [sum3([x, x, x], [5000])[0] for _ in range(50)]
    mx.async_eval(outs)  # type: ignore[no-untyped-call]
    assert all(mx.all(out == 3).item() for out in outs)


def test_inside_compile(sum3: Any) -> None:
    function = mx.compile(lambda a, b: sum3([a * 2, b, b], [a.size])[0] + 1)
    for n in (4, 4, 7):
        a, b = mx.arange(n).astype(mx.float32), mx.ones((n,))
        assert mx.array_equal(function(a, b), a * 2 + 3)


def test_inside_shapeless_compile_symbols_follow_the_inputs(sum3: Any) -> None:
    function = mx.compile(lambda a: sum3([a, a, a], [a.size])[0], shapeless=True)
    for n in (4, 9, 2):
        out = function(mx.ones((n,)))
        assert out.shape == (n,)
        assert out.tolist() == [3.0] * n


def test_compile_keeps_nodes_apart_that_differ_in_symbols(native: ModuleType, library: Library) -> None:
    plan = native.Plan([(library.address("report"), [0], [1], 0, [])], [VECTOR], [(mx.float32, [(4, -1)])])
    function = mx.compile(lambda x: [plan([x], [1, n])[0] + x for n in (5, 5, 6)])
    assert [out.tolist()[1] for out in function(vector(1))] == [6, 6, 7]


def test_multiple_outputs_and_dropped_ones(native: ModuleType, library: Library) -> None:
    add = library.address("add")
    outputs = [(mx.float32, [N]), (mx.float32, [N])]
    plan = native.Plan([(add, [0, 1], [2], 0, []), (add, [2, 1], [3], 0, [])], [VECTOR] * 2, outputs)
    first, second = plan([vector(1, 2), vector(10, 20)], [2])
    assert second.tolist() == [21, 42]
    assert first.tolist() == [11, 22]
    assert plan([vector(1, 2), vector(10, 20)], [2])[1].tolist() == [21, 42]


VIEWS: dict[str, Callable[[mx.array], mx.array]] = {
    "whole": lambda x: x,
    "rows": lambda x: x[2:6],
    "every other row": lambda x: x[::2],
    "columns": lambda x: x[:, 3:7],
    "every other column": lambda x: x[:, ::2],
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1, ::-1],
    "broadcast": lambda x: mx.broadcast_to(x[0], (5, 10)),
    "broadcast column": lambda x: mx.broadcast_to(x[:, :1], (8, 6)),
    "one column": lambda x: x[:, 4:5],
}


@pytest.mark.parametrize("contiguous", [True, False, None])
@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str, contiguous: bool | None, native: ModuleType, library: Library) -> None:
    x = mx.arange(80).reshape(8, 10).astype(mx.float32)
    mx.eval(x)
    y = VIEWS[view](x)
    rows, columns = y.shape
    dims = [(1, 0), (1, 1)]
    plan = native.Plan(
        [(library.address("strided"), [0], [1], 0, [])],
        [(mx.float32, 2, dims, contiguous, "y")],
        [(mx.float32, [(1, 2)])],
        threads=2,
    )
    result = np.array(plan([y], [rows, columns, y.size + 2])[0])
    assert np.array_equal(result[:-2].reshape(y.shape), np.array(y))
    strides = result[-2:].tolist()
    if contiguous:
        assert strides == [columns, 1]
    elif contiguous is False and columns > 1:
        assert strides[1] == 1
    if contiguous is None and view == "transposed":
        assert strides == [1, 10]
    if contiguous is False and view == "every other row":
        assert strides == [20, 1]


@pytest.mark.parametrize("dtype", [mx.uint8, mx.float16, mx.int32, mx.int64, mx.complex64])
def test_contiguous_copies_of_every_item_size(dtype: mx.Dtype, backend: Backend) -> None:
    text = """#include <cstring>
#include "abi.h"
extern "C" void copy(const ap_ctx* c) {
  if (c->tid == 0) std::memcpy(c->out[0].data, c->in[0].data, c->symbols[0]);
}"""
    library = backend.cache.compile_and_load([SourceUnit("copy", text)], backend.toolchain)[0]
    assert isinstance(library, Library)
    x = mx.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6).astype(dtype)
    y = x.transpose(2, 0, 3, 1)[1:, ::2]
    dims = [(size, -1) for size in y.shape]
    steps: list[Any] = [(library.address("copy"), [0], [1], 0, [])]
    plan = backend.module.Plan(steps, [(dtype, 4, dims, True)], [(dtype, dims)], threads=3)
    assert mx.array_equal(plan([y], [y.nbytes])[0], y)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_scratch_and_barriers(threads: int, native: ModuleType, library: Library) -> None:
    plan = native.Plan(
        [(library.address("exchange"), [0], [1], 64, [(0, 4)])] * 3, [VECTOR], [(mx.float32, [N])], threads=threads
    )
    for n in (1, 5, 64, 999):
        x = mx.arange(n).astype(mx.float32)
        expected = x + n * (n - 1) / 2
        for _ in range(20):
            assert mx.array_equal(plan([x], [n])[0], expected)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_step_sees_all_that_the_steps_before_wrote(
    threads: int, native: ModuleType, library: Library, poison: Callable[[int | None], None]
) -> None:
    late = library.address("late")
    temporaries = [(mx.float32, [N])] * 3
    steps: list[Any] = [(late, [i], [j], 0, []) for i, j in ((0, 2), (2, 3), (3, 4), (4, 1))]
    plan = native.Plan(steps, [VECTOR], [(mx.float32, [N])], temporaries, threads=threads)
    poison(0xFF)
    x = mx.arange(64).astype(mx.float32)
    for view in (x, mx.concatenate([x, x])[::2]):
        assert mx.array_equal(plan([view], [64])[0], view + 4)


def test_what_a_step_is_told(native: ModuleType, library: Library) -> None:
    report = library.address("report")

    def told(threads: int, *steps: tuple[Any, ...]) -> list[list[float]]:
        outputs = [(mx.float32, [(4, -1)])] * len(steps)
        plan = native.Plan(list(steps), [], outputs, [(mx.float32, [(3, 0)])], threads=threads)
        return [out.tolist() for out in plan([], [5, 77])]

    assert told(2, (report, [], [0], 100, [])) == [[2, 77, 0, 0]]
    assert told(3, (report, [], [0], 1, [], 1), (report, [], [1], 1, [], 2), (report, [], [2], 0, [], 9)) == [
        [1, 77, 0, 0],
        [2, 77, 0, 0],
        [3, 77, 0, 0],
    ]


def test_default_threads(native: ModuleType, library: Library) -> None:
    before = native.threads()
    plan = native.Plan([(library.address("report"), [], [0], 0, [])], [], [(mx.float32, [(4, -1)])])
    try:
        for threads in (1, 3):
            native.set_threads(threads)
            assert plan([], [0, 0])[0].tolist()[0] == threads
    finally:
        native.set_threads(before)
    with pytest.raises(ValueError, match="1 or more"):
        native.set_threads(0)


def test_two_python_threads_on_streams_of_their_own(sum3: Any) -> None:
    errors: list[str] = []

    def work(seed: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            x = mx.full((20_000,), float(seed))
            for i in range(60):
                out = sum3([x, x * i, x], [x.size])[0]
                if not mx.all(out == seed * (2 + i)).item():
                    errors.append(f"{seed} {i}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []


def test_stream_argument(sum3: Any) -> None:
    x = vector(1, 2)
    for stream in (None, mx.cpu, mx.Device(mx.cpu), mx.new_stream(mx.cpu), mx.default_stream(mx.cpu)):
        assert sum3([x, x, x], [2], stream)[0].tolist() == [3, 6]
        assert sum3([x, x, x], [2], stream=stream)[0].tolist() == [3, 6]
    with pytest.raises((TypeError, RuntimeError)):
        sum3([x, x, x], [2], "cpu")


@pytest.mark.parametrize("pattern", [0x00, 0x41, 0xFF])
def test_poison_fills_what_a_kernel_does_not_write(
    pattern: int, native: ModuleType, library: Library, poison: Callable[[int | None], None]
) -> None:
    outputs = [(mx.uint8, [(100, -1)])]
    plan = native.Plan([(library.address("nothing"), [], [0, 1], 0, [])], [], outputs, [(mx.uint8, [(9, -1)])])
    poison(pattern)
    assert plan([], [])[0].tolist() == [pattern] * 100


def test_poison_reaches_temporaries(sum3: Any, native: ModuleType, library: Library, poison: Any) -> None:
    poison(0xFF)
    x = vector(1, 2)
    assert sum3([x, x, x], [2])[0].tolist() == [3, 6]
    plan = native.Plan(
        [(library.address("add"), [2, 0], [1], 0, [])], [VECTOR], [(mx.float32, [N])], [(mx.float32, [N])]
    )
    assert np.isnan(np.array(plan([x], [2])[0])).all()
    with pytest.raises(ValueError, match="0 to 255"):
        native.set_poison(256)


def test_empty(sum3: Any, native: ModuleType, library: Library) -> None:
    x = mx.zeros((0,))
    assert sum3([x, x, x], [0])[0].tolist() == []
    assert (sum3([x, x, x], [0])[0] + 1).shape == (0,)
    outputs = [(mx.float32, [N]), (mx.float32, [(4, -1)])]
    plan = native.Plan([(library.address("report"), [], [1], 0, [])], [], outputs)
    empty, told = plan([], [0, 3])
    assert empty.shape == (0,)
    assert told.tolist()[1] == 3


def test_scalars_and_any_size(native: ModuleType, library: Library) -> None:
    add = library.address("add")
    scalar: tuple[Any, ...] = (mx.float32, 0, [], True)
    plan = native.Plan([(add, [0, 1], [2], 0, [])], [scalar, scalar], [(mx.float32, [])])
    assert plan([mx.array(2.0), mx.array(3.0)], [])[0].item() == 5
    anything = (mx.float32, 2, [(0, -2), (1, -2)], True)
    plan = native.Plan([(add, [0, 1], [2], 0, [])], [anything] * 2, [(mx.float32, [(2, -1), (1, 0)])])
    x = mx.ones((2, 6))
    assert plan([x, x], [6])[0].tolist() == [[2.0] * 6] * 2
    flexible: tuple[Any, ...] = (mx.float32, -1, [], True)
    plan = native.Plan([(add, [0, 1], [2], 0, [])], [flexible] * 2, [(mx.float32, [(12, -1)])])
    assert plan([x, x.flatten()], [])[0].tolist() == [2.0] * 12


HALF = "sum3: input 1 'b': expected float32[1], got float16[1]"


@pytest.mark.parametrize(
    ("inputs", "symbols", "message"),
    [
        ([vector(1)] * 2, [1], "sum3: expected 3 inputs, got 2"),
        (
            [vector(1), vector(1).astype(mx.float16), vector(1)],
            [1],
            "sum3: input 1 'b': expected float32[1], got float16[1]",
        ),
        ([vector(1), vector(1), mx.ones((1, 1))], [1], "sum3: input 2 'c': expected float32[1], got float32[1,1]"),
        ([vector(1, 2)] * 3, [3], "sum3: input 0 'a': expected float32[3], got float32[2]"),
        ([vector(1, 2)] * 3, [], "sum3: expected at least 1 symbols, got 0"),
        ([vector(1, 2)] * 3, [-2], "sum3: symbol 0 is a size and cannot be negative"),
        ([vector(1), 1.0, vector(1)], [1], "sum3: input 1 'b': expected an mlx.core.array, got float"),
    ],
)
def test_a_call_that_does_not_fit(inputs: Sequence[Any], symbols: list[int], message: str, sum3: Any) -> None:
    with pytest.raises(ValueError) as caught:
        sum3(inputs, symbols)
    assert str(caught.value) == message


def test_inputs_must_be_a_sequence(sum3: Any) -> None:
    with pytest.raises(TypeError, match="list or tuple"):
        sum3(5, [1])


def test_shapes_are_checked_again_when_a_shapeless_graph_is_replayed(native: ModuleType, library: Library) -> None:
    fixed = (mx.float32, 1, [(4, -1)], True, "w")
    plan = native.Plan([(library.address("add"), [0, 1], [2], 0, [])], [fixed, fixed], [(mx.float32, [(4, -1)])])
    function = mx.compile(lambda a: plan([a, a], [])[0], shapeless=True)
    assert function(mx.ones((4,))).tolist() == [2.0] * 4
    with pytest.raises(ValueError, match=r"input 0 'w': expected float32\[4\], got float32\[2\]"):
        mx.eval(function(mx.ones((2,))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [(0, [0], [1], 0, [])]}, "step 0: the function's address is 0"),
        ({"steps": [(1, [9], [1], 0, [])]}, "step 0: no buffer has number 9"),
        ({"steps": [(1, [0], [0], 0, [])]}, "step 0: buffer 0 is no output or temporary"),
        ({"steps": [(1, [0])]}, "a step is"),
        ({"inputs": [(mx.float32, 2, [N], True)]}, "its rank is not the number of its dims"),
        ({"inputs": [(mx.float32,)]}, "an input is"),
        ({"inputs": [(mx.float32, 1, [(1, -3)], True)]}, "a symbol index is"),
        ({"outputs": [(mx.float32, [(1, -2)])]}, "only an input may have an axis of any size"),
    ],
)
def test_a_plan_that_does_not_fit(arguments: dict[str, Any], message: str, native: ModuleType) -> None:
    valid: dict[str, Any] = {"steps": [], "inputs": [VECTOR], "outputs": [(mx.float32, [N])]}
    native.Plan(**valid)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        native.Plan(**(valid | arguments))


def test_no_gradient_and_no_vmap(sum3: Any) -> None:
    x = vector(1, 2)
    with pytest.raises(ValueError, match="sum3: a compiled kernel has no gradient"):
        mx.grad(lambda a: sum3([a, a, a], [2])[0].sum())(x)
    with pytest.raises(ValueError, match="sum3: a compiled kernel has no gradient"):
        mx.jvp(lambda a: sum3([a, a, a], [2])[0], [x], [x])
    with pytest.raises(ValueError, match=r"sum3: a compiled kernel cannot be used in mx\.vmap"):
        mx.vmap(lambda a: sum3([a, a, a], [2])[0])(mx.ones((3, 2)))


def test_the_graph_shows_the_plans_name(sum3: Any, tmp_path: Path) -> None:
    x = vector(1, 2)
    mx.export_to_dot(str(tmp_path / "graph.dot"), sum3([x, x, x], [2])[0])
    assert "sum3" in (tmp_path / "graph.dot").read_text()
    assert repr(sum3) == "Plan(sum3, 2 steps, 3 inputs, 1 outputs)"


def test_memory_is_given_back(sum3: Any) -> None:
    x = mx.ones((100_000,))
    mx.eval(x)
    mx.synchronize()
    before = mx.get_active_memory()
    for _ in range(20):
        mx.eval(sum3([x, x, x], [x.size]))
    mx.synchronize()
    assert mx.get_active_memory() == before


def test_inputs_are_kept_until_the_kernel_ran(sum3: Any) -> None:
    outs = []
    for i in range(30):
        x = mx.full((50_000,), float(i))
        outs.append(sum3([x + 1, x[::-1], x * 2], [x.size])[0])
        mx.async_eval(outs[-1])  # type: ignore[no-untyped-call]
        del x
    for i, out in enumerate(outs):
        assert mx.all(out == 4 * i + 1).item()


def test_the_end_of_the_process_waits_for_queued_work(backend: Backend) -> None:
    code = f"""
import mlx.core as mx
from mlx_autoperfect_cpu.build import SourceUnit
from mlx_autoperfect_cpu.extension import load_backend
backend = load_backend()
source = {SLOW!r}
library = backend.cache.compile_and_load([SourceUnit("slow", source)], backend.toolchain)[0]
plan = backend.module.Plan([(library.address("slow"), [], [0], 0, [], 1)], [], [(mx.uint8, [(1, -1)])])
mx.async_eval([plan([], [])[0] for _ in range(3)])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n" * 3


def test_other_versions_make_another_extension(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = find_headers()
    assert isinstance(headers, Headers)
    monkeypatch.setattr(CompilerRuns, "run", lambda *_: pytest.fail("compiled"))
    built = build_extension(backend.cache, backend.toolchain)
    assert isinstance(built, Path)
    monkeypatch.setattr(extension, "find_headers", lambda: replace(headers, versions="mlx (0, 33, 0)"))
    with pytest.raises(pytest.fail.Exception, match="compiled"):
        build_extension(backend.cache, backend.toolchain)
