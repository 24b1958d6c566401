import contextlib

import torch

from modelzip.train.finetune import FineTune, finetune
from tests.train import tasks

HOW = {"epochs": 2, "lr": 0.05, "keep": "last", "precision": "float32"}


def trained(**settings):
    found = tasks.prepared()
    data = tasks.splits(train=tasks.images(64, seed=0, crop=1))
    data.train.inputs = data.train.inputs.clamp(0, 1)
    finetune(found, data, FineTune(**HOW, **settings), batch_size=16, progress=False)
    return tasks.state(found)


def test_training_is_on_corrupted_images_and_repeats_exactly():
    noisy = trained(augment={"gaussian": [0.1, 0.3]})
    assert tasks.same(noisy, trained(augment={"gaussian": [0.1, 0.3]}))
    assert not tasks.same(noisy, trained())
    assert not tasks.same(noisy, trained(augment={"gaussian": [0.1, 0.3]}, augment_share=1.0))


def test_a_resumed_run_draws_the_same(tmp_path):
    def run(steps, path, *, resume=False):
        found = tasks.prepared()
        data = tasks.splits(train=tasks.images(64, seed=0, crop=1))
        data.train.inputs = data.train.inputs.clamp(0, 1)
        how = FineTune(**HOW, augment={"brightness": [-0.3, 0.3]})
        if steps:
            data = tasks.splits(train=Stopping(data.train, steps))
        finetune(found, data, how, batch_size=16, checkpoint=path, resume=resume, progress=False)
        return tasks.state(found)

    whole = run(0, tmp_path / "whole")
    with contextlib.suppress(KeyboardInterrupt):
        run(6, tmp_path / "part")
    assert tasks.same(whole, run(0, tmp_path / "part", resume=True))
    assert not torch.equal(whole["0.weight"], tasks.model().state_dict()["0.weight"])


class Stopping(type(tasks.images(2, seed=0))):
    """Data that stop a run, as Ctrl-C does, at batch number `at`."""

    def __init__(self, data, at):
        self.__dict__.update(data.__dict__)
        self.at = at

    def __getitems__(self, indices):
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        return super().__getitems__(indices)
