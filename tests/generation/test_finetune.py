import dataclasses

import pytest
import torch

import modelzip as mz
from modelzip import zoo
from modelzip.errors import ModelError, SettingError
from modelzip.generation import finetune_generator, gan_discriminator, made, vae_encoder
from modelzip.generation.finetune import _choices, check_settings, steps_of
from modelzip.train.settings import FineTune


@pytest.fixture
def given(data):
    torch.manual_seed(1)
    return vae_encoder(latent=4, width=4).given(data)


def prepared(*passes):
    torch.manual_seed(0)
    model = mz.Prepared(zoo.image_generator(latent=4, width=4))
    for one in passes:
        model.add(one)
    return model


def tune(model, given, **settings):
    teacher = settings.pop("teacher", None)
    how = FineTune(**{"steps": 20, "optimizer": "adam", "lr": 0.01, "keep": "last", **settings})
    return finetune_generator(model, given, how, batch_size=16, seed=0, teacher=teacher)


def error(model, given):
    images = made(model, given.train.codes)
    return given.scores(images, given.train.images)["squared error of a pixel"]


def test_it_comes_nearer_to_the_images(given):
    model = prepared()
    before = error(model.model, given)
    tune(model, given, steps=100)
    assert error(model.model, given) < 0.8 * before
    assert not model.model.training


def test_with_all_of_the_weight_on_the_teacher_the_images_do_not_matter(given):
    torch.manual_seed(9)
    teacher = zoo.image_generator(latent=4, width=4).eval()
    model = prepared()
    wanted = made(teacher, given.train.codes)
    before = float((made(model.model, given.train.codes) - wanted).square().mean())
    tune(model, given, distill=True, distill_weight=1.0, teacher=teacher, steps=60)
    after = float((made(model.model, given.train.codes) - wanted).square().mean())
    assert after < 0.5 * before
    assert all(p.grad is None for p in teacher.parameters())


def test_the_same_seed_gives_the_same_model(given):
    models = [prepared(), prepared()]
    for model in models:
        tune(model, given, steps=3)
    first, second = (model.model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pruned_weights_stay_zero(given):
    model = prepared(mz.MagnitudePrune(sparsity=0.5, targets=("layers.0",)))
    tune(model, given, steps=3)
    weight = model.convert().layers[0].weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_steps_are_counted_in_epochs(given):
    assert steps_of(FineTune(epochs=1.5), given, batch_size=8) == 6
    assert steps_of(FineTune(steps=7), given, batch_size=8) == 7


def test_keeping_the_best_epoch_is_refused():
    with pytest.raises(SettingError, match="left as the last step leaves it; give keep: last"):
        check_settings(FineTune(steps=1))


def test_settings_of_classifiers_are_refused():
    with pytest.raises(SettingError, match="label_smoothing is for classifiers"):
        check_settings(FineTune(steps=1, keep="last", label_smoothing=0.1))


@pytest.mark.parametrize("settings", [{}, {"distill": True}])
def test_a_gan_is_not_tuned_towards_images_that_no_code_is_of(data, settings):
    given = gan_discriminator(latent=4, width=4).given(data)
    with pytest.raises(SettingError, match=r"with this companion no image is the right one"):
        tune(prepared(), given, teacher=zoo.image_generator(latent=4, width=4), **settings)


def test_each_epoch_has_every_sample_once_and_an_order_of_its_own():
    parts = [part.tolist() for part, _ in zip(_choices(7, 3, seed=0), range(6), strict=False)]
    epochs = [parts[start] + parts[start + 1] for start in (0, 2, 4)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)  # the seventh makes no batch
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_fewer_samples_than_a_batch_are_taken_together():
    steps = [sorted(part.tolist()) for part, _ in zip(_choices(3, 8, seed=0), "ab", strict=False)]
    assert steps == [[0, 1, 2], [0, 1, 2]]


def test_distilling_needs_a_teacher(given):
    with pytest.raises(SettingError, match="distill is true, but there is no teacher"):
        tune(prepared(), given, distill=True)


def test_a_loss_that_is_not_finite_is_an_error(given):
    broken = dataclasses.replace(given, loss=lambda found, _: found.sum() * float("nan"))
    with pytest.raises(ModelError, match="the loss is nan at step 1 of 20; lower lr"):
        tune(prepared(), broken)
