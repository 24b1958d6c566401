import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelzip.errors import DataError, ExportError
from modelzip.runtime.session import missing
from modelzip.runtime.torch_session import TorchSession

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
needs_compiler = pytest.mark.skipif(
    bool(missing("torch.compile", "cpu")), reason="there is no C++ compiler"
)


class Two(nn.Module):
    """Returns a nested structure, and works by keyword."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"out": (ids + 1, mask * 2)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3))


x = torch.arange(8.0).reshape(2, 4)


def test_it_computes_what_the_module_does_in_eval_mode() -> None:
    module = net()
    expected = module.eval()(x).detach().numpy()
    outputs = TorchSession(module.train(), x).run(x)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-6)
    assert module.training


def test_later_changes_of_the_module_do_not_reach_it() -> None:
    module = net()
    session = TorchSession(module, x)
    before = session.run(x)[0]
    nn.init.zeros_(module[0].weight)
    np.testing.assert_array_equal(session.run(x)[0], before)


@pytest.mark.parametrize("keyword", [False, True])
def test_several_inputs_and_outputs(keyword: bool) -> None:
    ids, mask = torch.tensor([1, 2]), torch.tensor([0.5, 1.0])
    inputs = {"mask": mask, "ids": ids} if keyword else (ids, mask)
    session = TorchSession(Two(), inputs)
    assert {spec.name: spec.dtype for spec in session.inputs} == {"ids": "int64", "mask": "float32"}
    assert [out.tolist() for out in session.run(inputs)] == [[2, 3], [1.0, 2.0]]


def test_arguments_without_names_are_numbered() -> None:
    class Anonymous(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return args[0] + args[1]

    session = TorchSession(Anonymous(), (x, x))
    assert [spec.name for spec in session.inputs] == ["input0", "input1"]


def test_half_precision_returns_float32_nearby() -> None:
    module = net()
    half = TorchSession(module, x, precision="bfloat16").run(x)[0]
    assert half.dtype == np.float32
    full = TorchSession(module, x).run(x)[0]
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.05)


def test_inputs_are_checked() -> None:
    with pytest.raises(DataError, match=r"input input has shape \[2, 5\]; the model takes input"):
        TorchSession(net(), x).run(torch.zeros(2, 5))


def test_a_module_that_fails_is_named_on_one_line() -> None:
    with pytest.raises(ExportError, match=r"torch cannot run Sequential: .*shapes") as caught:
        TorchSession(net(), torch.zeros(2, 5))
    assert "\n" not in str(caught.value)


def test_threads_are_set_for_the_run_alone() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return value

    before = torch.get_num_threads()
    TorchSession(Spy(), x, threads=before + 1).bind(x)()
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


@needs_compiler
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own imports
def test_compiled_computes_what_eager_does() -> None:
    module = net()
    compiled = TorchSession(module, x, compiled=True)
    np.testing.assert_allclose(compiled.run(x)[0], TorchSession(module, x).run(x)[0], rtol=1e-5)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_computes_what_the_cpu_does(precision: str, compiled: bool) -> None:
    module = net()
    session = TorchSession(module, x, device="cuda", precision=precision, compiled=compiled)
    session.bind(x)()
    np.testing.assert_allclose(session.run(x)[0], TorchSession(module, x).run(x)[0], atol=0.05)
