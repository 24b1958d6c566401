import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx, nn

from modelzip import zoo
from modelzip.data import cifar10, loader
from modelzip.data.files import VARIABLE
from modelzip.errors import ModelError, SettingError

IMAGES = torch.rand(3, 3, 32, 32)
MODELS = {
    "digits_cnn": (zoo.digits_cnn, torch.rand(3, 1, 8, 8), 10),
    "resnet20": (zoo.resnet20, IMAGES, 10),
    "resnet56": (zoo.resnet56, IMAGES, 10),
    "depthwise_cnn": (zoo.depthwise_cnn, IMAGES, 10),
    "encoder of tokens": (
        lambda: zoo.encoder(vocabulary=9, length=5),
        torch.randint(9, (3, 5)),
        2,
    ),
    "text_encoder": (
        lambda: zoo.text_encoder(vocabulary=9, length=5, width=8, layers=2),
        torch.randint(9, (3, 5)),
        2,
    ),
    "text_cnn": (
        lambda: zoo.text_cnn(vocabulary=9, length=5, width=4, channels=3),
        torch.randint(9, (3, 5)),
        2,
    ),
    "encoder of floats": (lambda: zoo.encoder(features=4, length=5), torch.rand(3, 5, 4), 2),
}


def test_a_generator_makes_pixels_of_codes_and_an_encoder_codes_of_pixels():
    images = zoo.image_generator(latent=3, width=4)(10 * torch.randn(5, 3)).detach()
    assert images.shape == (5, 1, 28, 28)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert zoo.image_encoder(outputs=6, width=4)(images).shape == (5, 6)


@pytest.mark.parametrize("settings", [{"latent": 0}, {"width": 1}])
def test_a_generator_of_nothing_is_refused(settings):
    with pytest.raises(SettingError, match="must be an integer of at least"):
        zoo.image_generator(**settings)
    with pytest.raises(SettingError, match="width must be even, as half of it is a layer's too"):
        zoo.image_encoder(outputs=3, width=5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_and_traces(name):
    make, inputs, classes = MODELS[name]
    model = make().eval()
    with torch.no_grad():
        outputs = model(inputs)
        traced = fx.symbolic_trace(model)(inputs)
    assert outputs.shape == (3, classes)
    torch.testing.assert_close(traced, outputs)


def test_a_text_cnn_answers_by_the_largest_value_wherever_it_is():
    torch.manual_seed(0)
    model = zoo.text_cnn(vocabulary=9, length=6, width=4, channels=3, kernels=[1]).eval()
    ids = torch.tensor([[1, 2, 3, 0, 0, 0], [0, 3, 0, 2, 1, 0]])
    with torch.no_grad():
        one, other = model(ids)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([], r"text_cnn needs at least one kernel, got kernels=\[\]"),
        ([3, 2], "kernels must be odd, so that all give length=64, got 2"),
        ([0], "kernels must be an integer of at least 1, got 0"),
    ],
)
def test_kernels_of_a_text_cnn_are_odd(kernels, message):
    with pytest.raises(SettingError, match=message):
        zoo.text_cnn(kernels=kernels)


def resnet_weights(blocks: int) -> int:
    """Weights of He et al.'s CIFAR nets, counted by hand: 6 * blocks + 2 weighted layers."""
    count = 3 * 16 * 9 + 2 * 16
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        convs = inputs * outputs * 9 + (2 * blocks - 1) * outputs * outputs * 9
        count += convs + 2 * blocks * 2 * outputs
    return count + 64 * 10 + 10


@pytest.mark.parametrize(("make", "blocks"), [(zoo.resnet20, 3), (zoo.resnet56, 9)])
def test_resnets_have_the_weights_of_the_paper(make, blocks):
    model = make()
    assert sum(p.numel() for p in model.parameters()) == resnet_weights(blocks)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 6 * blocks + 2


def test_an_option_a_shortcut_by_hand():
    block = zoo.ResidualBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.arange(32.0).view(1, 2, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (1, 4, 2, 2)
    assert bool((out[0, [0, 3]] == 0).all())
    assert torch.equal(out[0, 1:3], x[0, :, ::2, ::2])


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    ours = zoo.Attention(8, heads=2).eval()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x = torch.rand(2, 5, 8)
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": 9, "width": 10, "heads": 4}, "width must be a multiple of heads"),
        ({}, "encoder takes vocabulary .* or features"),
        ({"vocabulary": 9, "features": 3}, "one of them"),
        ({"features": 0}, "features must be an integer of at least 1, got 0"),
    ],
)
def test_bad_encoders_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        zoo.encoder(**arguments)


def small_text_encoder() -> nn.Module:
    torch.manual_seed(0)
    return zoo.text_encoder(vocabulary=9, length=5, width=8, layers=2, word_dropout=0.5)


def test_padding_says_nothing():
    model = small_text_encoder().eval()
    rows = torch.tensor([[3, 4, 0, 0, 0], [3, 4, 0, 0, 0]])
    with torch.no_grad():
        expected = model(rows)
        model.embed.weight[0] = 100.0  # the vector of the padding token
        model.position[:, 2:] = -100.0
        torch.testing.assert_close(model(rows), expected)


def test_a_sentence_of_nothing_gets_the_classifiers_bias():
    model = small_text_encoder().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.zeros(1, 5, dtype=torch.long))[0], model.linear.bias)


def test_word_dropout_takes_whole_tokens():
    model = small_text_encoder().train()
    dropped = model.word_dropout(torch.ones(4, 50, 8)).detach()
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}  # what is kept makes up for the rest
    assert bool((dropped == dropped[..., :1]).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 10, "heads": 4}, "width must be a multiple of heads, got width=10, heads=4"),
        ({"vocabulary": 0}, "vocabulary must be an integer of at least 1, got 0"),
        ({"heads": 0}, "heads must be an integer of at least 1, got 0"),
        ({"layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"classes": 0}, "classes must be an integer of at least 1, got 0"),
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a fraction in \[0, 1\), got 1.0"),
        ({"word_dropout": 30}, "word_dropout must be a fraction .*; for 30 % write 0.3"),
    ],
)
def test_bad_text_encoders_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        zoo.text_encoder(**arguments)


def build(weights: Path | None = None) -> nn.Module:
    return zoo.build("modelzip.zoo:digits_cnn", weights=weights, width=2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_are_loaded(tmp_path: Path, suffix):
    model, path = build(), tmp_path / f"w{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    assert torch.equal(build(path)[0].weight, model[0].weight)


def test_weights_without_batch_counters_are_loaded(tmp_path: Path):
    state = {k: v for k, v in build().state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(build(tmp_path / "w.safetensors")[0].weight, state["0.weight"])


def test_keys_that_do_not_fit_are_named(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    state = build().state_dict()
    save_file({"odd": state.pop("0.weight"), **state}, path)
    with pytest.raises(SettingError, match=r'w.safetensors does not fit .*"0.weight".*"odd"'):
        build(path)
    save_file(zoo.digits_cnn(width=3).state_dict(), path)
    with pytest.raises(SettingError, match=r"does not fit the model: size mismatch for 0\.weight"):
        build(path)


def test_nothing_in_a_pickle_is_run(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"0.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(SettingError, match="holds something other than tensors, or is damaged"):
        build(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_other_weight_files_are_refused(tmp_path: Path):
    path = tmp_path / "w.pt"
    with pytest.raises(SettingError, match="there is no weights file"):
        build(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(SettingError, match=r"w\.pt is not a state dict"):
        build(path)
    path.write_bytes(b"broken")
    with pytest.raises(SettingError, match="or is damaged"):
        build(path)
    path.with_suffix(".safetensors").write_bytes(b"broken")
    with pytest.raises(SettingError, match="is not a readable safetensors file"):
        build(path.with_suffix(".safetensors"))
    path.with_suffix(".onnx").write_bytes(b"")
    with pytest.raises(SettingError, match=r"must be .safetensors, .pt or .pth, got w\.onnx"):
        build(path.with_suffix(".onnx"))


def test_nan_in_weights_is_named(tmp_path: Path):
    state = build().state_dict()
    state["3.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"3\.weight of Sequential holds NaN or infinity"):
        build(tmp_path / "w.safetensors")


def test_what_is_no_model_is_refused():
    with pytest.raises(SettingError, match="builtins:dict returned dict; it must return a Module"):
        zoo.build("builtins:dict", a=1)


def test_a_users_own_model_beside_the_recipe(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_net.py").write_text(
        "from torch.nn import Linear\ndef f(n): return Linear(n, 1)"
    )
    assert zoo.build("own_net:f", beside=tmp_path, n=3).in_features == 3
    del sys.modules["own_net"]


def weights_folder() -> Path | None:
    data = os.environ.get(VARIABLE)
    folder = Path(data).parent / "models" if data else None
    return folder if folder is not None and folder.is_dir() else None


real = pytest.mark.skipif(weights_folder() is None, reason="no trained weights beside the data")


@real
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_trained_resnets_load(name):
    path = weights_folder() / f"{name}_cifar10.safetensors"
    model = zoo.build(f"modelzip.zoo:{name}", weights=path)
    assert torch.equal(model.linear.weight, load_file(path)["linear.weight"])


@real
@pytest.mark.slow
def test_resnet20_reaches_its_accuracy():
    path = weights_folder() / "resnet20_cifar10.safetensors"
    model = zoo.build("modelzip.zoo:resnet20", weights=path).eval()
    correct = 0
    with torch.no_grad():
        for inputs, targets in loader(cifar10().test, batch_size=500):
            correct += int((model(inputs).argmax(dim=1) == targets).sum())
    assert correct == 9173
