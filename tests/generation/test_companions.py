import math

import pytest
import torch

from modelzip import zoo
from modelzip.data import Splits
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.generation import Companion, gan_discriminator, made, vae_encoder
from modelzip.generation.vae import divergence

MAKERS = {
    "vae": lambda **more: vae_encoder(**{"latent": 4, "width": 4, "epochs": 2, **more}),
    "gan": lambda **more: gan_discriminator(
        **{"latent": 4, "width": 4, "epochs": 2, "classifier_epochs": 2, "classes": 2, **more}
    ),
}


def generator(latent=4):
    torch.manual_seed(0)
    return zoo.image_generator(latent=latent, width=4)


@pytest.fixture(params=list(MAKERS))
def make(request):
    torch.manual_seed(1)
    return MAKERS[request.param]


def train(companion, model, data, batch_size=8):
    companion.train_with(model, data, batch_size=batch_size, seed=0, progress=False)


def test_training_changes_both_and_leaves_them_ready(make, data):
    model, companion = generator(), make()
    nets = {"model": model, "companion": companion}
    before = {(n, k): v.clone() for n, net in nets.items() for k, v in net.named_parameters()}
    train(companion, model, data)
    after = {(n, k): v for n, net in nets.items() for k, v in net.named_parameters()}
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert not model.training
    assert not companion.training


def test_training_is_the_same_for_the_same_seed(make, data):
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model, companion = generator(), make()
        train(companion, model, data)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_is_given_has_codes_for_every_image_and_the_pixels_themselves(make, data):
    given = make().given(data)
    assert given.train.codes.shape == (32, 4)
    assert given.test.images.shape == (16, 1, 28, 28)
    pixels = data.test.inputs.float() / 255
    assert torch.allclose(given.test.images, pixels, atol=1e-6)
    assert given.samples.shape == (64, 4)


def test_what_is_given_is_the_same_each_time_and_of_the_seed(make, data):
    companion = make()
    first, second = companion.given(data), companion.given(data)
    companion.seed = 5
    assert torch.equal(first.train.codes, second.train.codes)
    assert not torch.equal(first.train.codes, companion.given(data).train.codes)
    assert not torch.equal(first.train.codes[:16], first.test.codes)


def test_a_model_of_another_kind_is_refused(make, data):
    with pytest.raises(SettingError, match=r"trains modelzip.zoo:image_generator, got Sequential"):
        make().check(torch.nn.Sequential())


def test_a_model_of_another_latent_is_refused(make, data):
    with pytest.raises(SettingError, match="the model has latent=6, its companion latent=4"):
        train(make(), generator(latent=6), data)


def test_images_of_another_size_are_refused(make):
    pairs = [(torch.zeros(3, 32, 32), 0)] * 4
    other = Splits(train=pairs, validation=pairs, test=pairs, classes=2)
    with pytest.raises(DataError, match=r"images are \[3, 32, 32\]; these networks take \[1, 28"):
        make().given(other)


def test_pixels_that_are_normalised_without_saying_so_are_refused(make):
    pairs = [(torch.full((1, 28, 28), -2.0), 0)] * 4
    other = Splits(train=pairs, validation=pairs, test=pairs, classes=2)
    with pytest.raises(DataError, match=r"pixels are -2 to -2, not in \[0, 1\]; leave them"):
        make().given(other)


def test_a_loss_that_is_not_finite_is_an_error(data):
    companion = MAKERS["vae"](lr=1e30)
    with pytest.raises(ModelError, match=r"the loss is .* at step \d+ of 8; lower lr"):
        train(companion, generator(), data)


def test_a_companion_has_to_say_what_it_does(data):
    with pytest.raises(NotImplementedError):
        Companion().given(data)
    with pytest.raises(NotImplementedError):
        Companion().check(generator())
    with pytest.raises(NotImplementedError):
        train(Companion(), generator(), data)


def test_a_vae_learns_to_reconstruct(data):
    model, companion = generator(), MAKERS["vae"](epochs=40, lr=5e-3)

    def score():
        given = companion.given(data)
        return given.scores(made(model, given.train.codes), given.train.images)

    before = score()
    train(companion, model, data)
    after = score()
    assert after["negative ELBO, nats an image"] < 0.8 * before["negative ELBO, nats an image"]
    assert after["squared error of a pixel"] < 0.3 * before["squared error of a pixel"]


def test_the_bound_is_reconstruction_and_divergence(data):
    torch.manual_seed(0)
    companion = MAKERS["vae"]()
    given = companion.given(data)
    grey = torch.full_like(given.test.images, 0.5)
    scores = given.scores(grey, given.test.images)
    mean, log_variance = companion.encode(given.test.images)
    assert scores["reconstruction, nats an image"] == pytest.approx(784 * math.log(2), rel=1e-5)
    kl = float(divergence(mean, log_variance).mean())
    assert scores["negative ELBO, nats an image"] == pytest.approx(
        scores["reconstruction, nats an image"] + kl
    )
    expected = float((0.5 - given.test.images).square().mean())
    assert scores["squared error of a pixel"] == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_torchs_own():
    mean, log_variance = torch.randn(3, 5), torch.randn(3, 5)
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
    expected = torch.distributions.kl_divergence(ours, prior).sum(dim=1)
    assert torch.allclose(divergence(mean, log_variance), expected, atol=1e-5)


def test_real_images_are_nearer_to_real_images_than_made_ones(data):
    model, companion = generator(), MAKERS["gan"](classifier_epochs=20)
    train(companion, model, data)
    given = companion.given(data)
    score = "Frechet distance"
    real = given.scores(given.validation.images, given.test.images)[score]
    fake = given.scores(made(model, given.test.codes), given.test.images)[score]
    assert 0 <= real < fake


def test_the_classifier_of_a_gan_learns_the_labels(data):
    companion = MAKERS["gan"](classifier_epochs=20)
    train(companion, generator(), data)
    images = companion.given(data).test.images
    found = companion.classifier(images).argmax(dim=1)
    assert torch.equal(found, data.test.targets)
