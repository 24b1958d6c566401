import pytest
import torch
from torch import fx, nn

from modelzip.quantization.folding import fold_norms


def normed(layer: nn.Module, norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(layer, norm, nn.ReLU()).eval()


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (normed(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), torch.ones(2, 3, 5, 5)),
        (
            normed(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8, affine=False)),
            torch.ones(1, 4, 5, 5),
        ),
        (normed(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), torch.ones(2, 3, 5)),
        (normed(nn.Linear(3, 8), nn.BatchNorm1d(8)), torch.ones(2, 3)),
    ],
)
def test_what_is_computed_stays(model, x):
    before = model(x)
    graph = fx.symbolic_trace(model)
    assert fold_norms(graph) == ["1"]
    assert not any("BatchNorm" in type(m).__name__ for m in graph.modules())
    torch.testing.assert_close(graph(x), before)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.layer(self.norm(self.layer(x))))


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.layer(x)
        return y + self.norm(y)


@pytest.mark.parametrize(
    "model",
    [
        Shared(),
        Read(),
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
    ],
)
def test_what_cannot_be_folded_is_left_alone(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fold_norms(graph := fx.symbolic_trace(model.eval())) == []
    assert all(torch.equal(graph.state_dict()[name], tensor) for name, tensor in state.items())
