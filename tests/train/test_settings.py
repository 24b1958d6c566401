import dataclasses

import pytest

from modelzip.errors import SettingError
from modelzip.train.settings import FineTune


def test_repr_builds_the_same_settings():
    settings = FineTune(epochs=1.5, lr=0.2, optimizer="adamw", clip_norm=1.0)
    assert eval(repr(settings)) == settings  # noqa: S307
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "finetune takes epochs or steps, got neither"),
        ({"steps": 3}, "takes epochs or steps, got epochs=1 and steps=3"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"epochs": "2"}, "epochs must be a number, got '2'"),
        ({"epochs": None, "steps": 1.5}, "steps must be an integer of at least 1, got 1.5"),
        ({"lr": -1}, "lr must be above 0, got -1"),
        ({"optimizer": "adm"}, "optimizer has no choice 'adm'; did you mean 'adam'"),
        ({"momentum": 1.0}, r"momentum must be a fraction in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"schedule": "cosin"}, "schedule has no choice 'cosin'; did you mean 'cosine'"),
        ({"warmup": 5}, "warmup must be a fraction .* for 5 % write 0.05"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a fraction"),
        ({"distill": "yes"}, "distill must be true or false, got 'yes'"),
        ({"distill_weight": 0}, r"distill_weight must be a fraction in \(0, 1\], got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"keep": "first"}, "keep has no choice 'first'"),
        ({"clip_norm": 0}, "clip_norm must be above 0, got 0"),
        ({"precision": "fp16"}, "precision has no choice 'fp16'"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum=0.5 does nothing with optimizer='adam'"),
        ({"distill_weight": 0.5}, "distill_weight=0.5 does nothing with distill=False"),
        ({"temperature": 2}, "temperature=2 does nothing with distill=False"),
        ({"distill": True, "feature_kind": "values"}, r"does nothing with distill_features=\(\)"),
        ({"feature_weight": 2.0}, r"feature_weight=2.0 does nothing with distill_features=\(\)"),
        ({"augment_share": 0.5}, "augment_share=0.5 does nothing with augment=None"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        FineTune(**({"epochs": 1} | changes))


def test_an_augmentation_is_checked_and_kept():
    assert FineTune(epochs=1, augment={"jpeg": [50, 95]}).augment == {"jpeg": (50, 95)}
    with pytest.raises(SettingError, match="augment has no choice 'jpg'; did you mean 'jpeg'"):
        FineTune(epochs=1, augment={"jpg": [50, 95]})
    with pytest.raises(SettingError, match=r"augment_share must be a fraction in \(0, 1\], got 60"):
        FineTune(epochs=1, augment_share=60)
