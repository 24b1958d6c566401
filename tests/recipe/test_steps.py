import pytest
import torch

import modelzip as mz
from modelzip.data import digits
from modelzip.errors import DataError, SelectionError, SettingError
from modelzip.recipe.steps import carry_out, clean, rehearsal, train_from_scratch
from modelzip.recipe.workshop import open_workshop, validation_accuracy
from modelzip.zoo import digits_cnn
from tests.stopping import Stopped, stop_after

STEPS = (
    mz.PruneChannels(sparsity=0.5, round_to=1),
    mz.FineTune(steps=20, lr=0.05, distill=True),
    mz.FakeQuantize(bits=8),
    mz.FineTune(epochs=2, lr=0.01),
)


@pytest.fixture(scope="module")
def shop():
    return open_workshop(digits(), batch_size=64, calibration=128, seed=0)


def model():
    torch.manual_seed(0)
    return digits_cnn(width=4)


def outputs(prepared, shop):
    return prepared.convert()(shop.example_inputs)


def test_a_rehearsal_says_what_each_pass_would_do_and_touches_nothing(shop):
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    reports = rehearsal(STEPS, net, shop)
    assert [report.name for report in reports] == ["prune_channels", "fake_quantize"]
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_a_rehearsal_finds_a_selector_that_matches_nothing(shop):
    with pytest.raises(SelectionError, match=r"targets=\['fc'\] matches none"):
        rehearsal([mz.MagnitudePrune(sparsity=0.5, targets=("fc",))], model(), shop)


def test_a_rehearsal_finds_features_that_are_not_there(shop):
    how = mz.FineTune(epochs=1, distill=True, distill_features=("conv",))
    with pytest.raises(SettingError, match=r"distill_features=\['conv'\] matches no module"):
        rehearsal([how], model(), shop)


def test_steps_are_carried_out_in_order_and_recorded(shop, tmp_path):
    prepared, done = carry_out(STEPS, model(), shop, tmp_path, progress=False)
    assert [s.name for s in done] == ["prune_channels", "finetune", "fake_quantize", "finetune"]
    assert done[1].settings["distill"] is True
    assert all(0 <= s.accuracy <= 1 and s.seconds > 0 for s in done)
    assert done[-1].accuracy == validation_accuracy(prepared.model, shop)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["step-4.safetensors"]
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 4])
def test_a_stopped_run_goes_on_to_the_same_result(shop, tmp_path, checkpoints):
    """Checkpoints: one epoch of step 2, step 2 itself, one epoch of step 4, both epochs of it."""
    whole, done = carry_out(STEPS, model(), shop, _folder(tmp_path, "whole"), progress=False)
    folder = _folder(tmp_path, "stopped")
    with pytest.raises(Stopped), stop_after(checkpoints):
        carry_out(STEPS, model(), shop, folder, progress=False)
    resumed, again = carry_out(STEPS, model(), shop, folder, progress=False)
    assert torch.equal(outputs(whole, shop), outputs(resumed, shop))
    assert [s.accuracy for s in again] == [s.accuracy for s in done]


def test_finished_training_from_scratch_is_not_repeated(shop, tmp_path):
    how = mz.FineTune(steps=10)
    first = train_from_scratch(model(), how, shop, tmp_path, progress=False)
    again = train_from_scratch(digits_cnn(width=4), how, shop, tmp_path, progress=False)
    assert torch.equal(first(shop.example_inputs), again(shop.example_inputs))


def test_a_damaged_list_of_steps_is_refused(shop, tmp_path):
    (tmp_path / "steps.json").write_text("[3]")
    with pytest.raises(SettingError, match=r"steps\.json is damaged .*; remove "):
        carry_out(STEPS, model(), shop, tmp_path, progress=False)


def test_data_are_checked_first():
    splits = digits()
    bad = type(splits)(train=splits.train, validation=splits.validation, test=[], classes=10)
    with pytest.raises(DataError, match="the test data are empty"):
        open_workshop(bad, batch_size=64, calibration=16, seed=0)


def _folder(parent, name):
    folder = parent / name
    folder.mkdir()
    return folder


def test_a_rewind_to_weights_that_the_run_will_save_is_not_rehearsed(shop, tmp_path):
    path = str(tmp_path / "early.safetensors")
    steps = [
        mz.FineTune(steps=2, save_at=1, save_to=path),
        mz.MagnitudePrune(sparsity=0.5),
        mz.Rewind(weights=path),
    ]
    pruned, rewound = rehearsal(steps, model(), shop)
    assert pruned.layers
    assert rewound.notes == (
        "goes back to weights that an earlier step saves, and was not rehearsed",
    )
    with pytest.raises(SettingError, match=r"early\.safetensors"):
        rehearsal(steps[1:], model(), shop)
