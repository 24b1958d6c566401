from pathlib import Path

import pytest
import yaml

import modelzip as mz
from modelzip.errors import SettingError
from modelzip.measure.conditions import Robustness
from modelzip.recipe.loader import dump, load, validate
from modelzip.recipe.schema import Plan
from modelzip.report.requirements import Requirement

DIGITS = """
model: {build: "modelzip.zoo:digits_cnn"}
data: {build: "modelzip.data:digits"}
steps:
  - prune_channels: {sparsity: 0.4}
  - finetune: {epochs: 1}
require: {size: 0.2x}
"""


def write(folder, text=DIGITS, *, name="digits.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def fails(path, *overrides):
    with pytest.raises(SettingError) as caught:
        load(path, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_is_typed_and_has_its_defaults(tmp_path):
    recipe = load(write(tmp_path))
    assert recipe.steps == (mz.PruneChannels(sparsity=0.4), mz.FineTune(epochs=1))
    assert recipe.require == (Requirement("size", 0.2, "x"),)
    assert (recipe.seed, recipe.data.batch_size, recipe.export.opset) == (0, 128, 21)
    assert recipe.measure.batch_sizes == (1, 32)
    assert recipe.measure.runtimes == ("onnxruntime", "openvino")
    assert recipe.folder == tmp_path


def test_the_resolved_recipe_reads_back_equal(tmp_path):
    recipe = load(write(tmp_path), overrides=["model.train={epochs: 2}", "seed=3"])
    again = load(write(tmp_path, dump(recipe), name="recipe.yaml"))
    assert again == recipe
    assert again.model.train == mz.FineTune(epochs=2)
    assert again.resolved() == recipe.resolved()


def test_robustness_is_read_and_written_back(tmp_path):
    text = DIGITS + "robustness: {jpeg: [90, 50], pgd: [2/255], samples: 300}\n"
    recipe = load(write(tmp_path, text))
    assert recipe.robustness == Robustness(jpeg=(90, 50), pgd=(2 / 255,), samples=300)
    assert load(write(tmp_path, dump(recipe), name="recipe.yaml")) == recipe
    assert load(write(tmp_path)).robustness is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{jpg: [50]}", "robustness has no setting 'jpg'; did you mean 'jpeg'?"),
        ("{jpeg: [500]}", "jpeg: quality must be an integer from 1 to 100, got 500"),
        ("[jpeg]", "robustness must have a mapping of settings, got ['jpeg']"),
        ("{}", "robustness names no condition; give one, such as jpeg: [75, 50]"),
    ],
)
def test_a_wrong_robustness_is_told(section, message, tmp_path):
    assert message in fails(write(tmp_path, f"{DIGITS}robustness: {section}\n"))


def test_training_may_be_augmented_by_corruptions(tmp_path):
    text = DIGITS.replace("{epochs: 1}", "{epochs: 1, augment: {jpeg: [50, 95]}}")
    recipe = load(write(tmp_path, text))
    assert recipe.steps[1] == mz.FineTune(epochs=1, augment={"jpeg": (50, 95)})
    assert load(write(tmp_path, dump(recipe), name="recipe.yaml")) == recipe


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_here_say_what_the_schema_takes(path, tmp_path, monkeypatch):
    raw = yaml.safe_load(path.read_text())
    if "weights" in raw["model"]:
        monkeypatch.setenv("MODELZIP_MODELS", str(tmp_path))
        write(tmp_path, "", name=raw["model"]["weights"])
    assert load(path).require


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "sparsity",
            "sparsty",
            "digits.yaml: steps[0]: prune_channels has no setting 'sparsty'; "
            "did you mean 'sparsity'?",
        ),
        (
            "prune_channels",
            "prune_chanels",
            "digits.yaml: steps[0]: there is no pass 'prune_chanels'; "
            "did you mean 'prune_channels'?",
        ),
        (
            "epochs: 1",
            "epoch: 1",
            "digits.yaml: steps[1]: finetune has no setting 'epoch'; did you mean 'epochs'?",
        ),
        (
            "epochs: 1",
            "epochs: '1'",
            "digits.yaml: steps[1]: finetune: epochs must be a number, got '1'",
        ),
        (
            "sparsity: 0.4",
            "sparsity: 40",
            "digits.yaml: steps[0]: prune_channels: sparsity must be a fraction in (0, 1), got 40; "
            "for 40 % write 0.4",
        ),
        (
            "{sparsity: 0.4}",
            "0.4",
            "digits.yaml: steps[0]: prune_channels must have a mapping of settings, got 0.4",
        ),
        (
            "require:",
            "requires:",
            "digits.yaml: there is no setting 'requires'; did you mean 'require'?",
        ),
        (
            "0.2x",
            "20 %",
            "digits.yaml: require: size must be such as 0.15x or 310 KB, got '20 %'",
        ),
        (
            "{size: 0.2x}",
            "small",
            "digits.yaml: require: must be a mapping such as {size: 0.2x}, got 'small'",
        ),
        ("require:", "seed: one\nrequire:", "digits.yaml: seed must be an integer, got 'one'"),
        (
            "require:",
            "seed: -1\nrequire:",
            "digits.yaml: seed must be greater than or equal to 0, got -1",
        ),
        (
            "require:",
            "export: {opsett: 21}\nrequire:",
            "digits.yaml: export has no setting 'opsett'; did you mean 'opset'?",
        ),
        (
            "require:",
            "export: [21]\nrequire:",
            "digits.yaml: export must be a mapping of settings, got [21]",
        ),
        (
            "require:",
            "measure: {threads: []}\nrequire:",
            "digits.yaml: measure.threads is empty; give at least one",
        ),
        (
            "require:",
            "measure: {threads: 1}\nrequire:",
            "digits.yaml: measure.threads must be a list, got 1",
        ),
        (
            "require:",
            "measure: {precisions: [bf16]}\nrequire:",
            "digits.yaml: measure.precisions[0]: precision has no choice 'bf16'; did you mean",
        ),
        (
            "require:",
            "measure: {devices: [cudda]}\nrequire:",
            "digits.yaml: measure.devices[0]: device has no choice 'cudda'; did you mean 'cuda'?",
        ),
        (
            "require:",
            "seed: 1\nseed: 2\nrequire:",
            "digits.yaml: line 8: 'seed' is set twice",
        ),
        (
            "size: 0.2x",
            "size: *limit",
            "digits.yaml: line 7: aliases (*name) are not allowed; write the value out",
        ),
        ("require:", "a\tb: [\nrequire:", "digits.yaml: line"),
        ("size: 0.2x", "archive: 0.2x", "digits.yaml: require: archive needs one; add archive: {"),
        (
            "require:",
            "archive: {codec: zsdt}\nrequire:",
            "digits.yaml: archive.codec: there is no codec 'zsdt'; did you mean 'zstd'?",
        ),
        (
            "  - finetune: {epochs: 1}\n",
            "  - int8\n  - prune_channels: {sparsity: 0.1}\n",
            "digits.yaml: prune_channels (STRUCTURE) must come before int8 (ACTIVATION)",
        ),
        (
            "  - prune_channels: {sparsity: 0.4}\n",
            "  - {int8: {}, finetune: {}}\n",
            "digits.yaml: steps[0]: a step is one name with its settings, got {'int8': {}, ",
        ),
        (
            '{build: "modelzip.zoo:digits_cnn"}',
            '{build: "modelzip.zoo:digits_cnn", train: 3}',
            "digits.yaml: model.train: finetune must have a mapping of settings, got 3",
        ),
        (
            '{build: "modelzip.zoo:digits_cnn"}',
            '{build: "modelzip.zoo:digits_cnn", train: {epochs: 1, distill: true}}',
            "digits.yaml: model.train: distill needs a teacher, and there is none yet",
        ),
        ('{build: "modelzip.data:digits"}', "{}", "digits.yaml: data.build is missing"),
        (
            '{build: "modelzip.zoo:digits_cnn"}',
            '{build: "modelzip.zoo:digits_cnn", weights: none.pt}',
            "digits.yaml: model.weights: there is no file 'none.pt' in ",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, old, new, message):
    assert old in DIGITS
    found = fails(write(tmp_path, DIGITS.replace(old, new, 1)))
    assert found.startswith(message)


def test_a_pass_that_needs_training_needs_a_finetune_after_it(tmp_path):
    cubic = "  - magnitude_prune: {sparsity: 0.5, schedule: cubic}\n"
    text = DIGITS.replace("  - finetune: {epochs: 1}\n", cubic)
    message = fails(write(tmp_path, text))
    assert message == (
        "digits.yaml: steps: the last magnitude_prune needs training with these settings; "
        "add a finetune step after it"
    )


def test_steps_must_not_be_empty(tmp_path):
    text = DIGITS[: DIGITS.index("steps:")] + "steps: []\n"
    assert fails(write(tmp_path, text)) == "digits.yaml: steps is empty; give at least one"


def test_a_recipe_must_be_a_mapping(tmp_path):
    message = fails(write(tmp_path, "- a\n"))
    assert message == "digits.yaml: a recipe must be a mapping of settings, got ['a']"


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path):
    assert fails(tmp_path / "none.yaml") == f"there is no recipe {tmp_path / 'none.yaml'}"
    assert fails(tmp_path).startswith("cannot read the recipe ")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert fails(tmp_path / "a.yaml").startswith("cannot read the recipe ")


def test_a_file_too_large_for_a_recipe_is_refused(tmp_path):
    assert "; a recipe has at most 1000000" in fails(write(tmp_path, "#" * 1_000_001))


def test_nesting_without_end_is_refused(tmp_path):
    assert fails(write(tmp_path, "[" * 5000)).startswith("digits.yaml: not YAML: ")


def test_a_tag_that_builds_objects_is_refused(tmp_path):
    text = DIGITS + "seed: !!python/object/apply:os.getcwd []\n"
    assert "could not determine a constructor" in fails(write(tmp_path, text))


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    recipe = load(write(tmp_path, DIGITS.replace("epochs: 1", "epochs: 1, lr: 1e-3")))
    assert recipe.steps[1].lr == 0.001


def test_overrides_replace_and_add_settings(tmp_path):
    recipe = load(
        write(tmp_path),
        overrides=[
            "steps.0.prune_channels.sparsity=0.3",
            "steps.0.prune_channels.round_to=4",
            "export.opset=22",
            "require.macs=0.5x",
            "data.batch_size=32",
            "steps.1={finetune: {steps: 5}}",
        ],
    )
    assert recipe.steps == (mz.PruneChannels(sparsity=0.3, round_to=4), mz.FineTune(steps=5))
    assert recipe.export.opset == 22
    assert recipe.data.batch_size == 32
    assert [r.name for r in recipe.require] == ["size", "macs"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set takes key=value such as seed=1, got 'seed'"),
        (
            "steps.0.prune_chanels.sparsity=1",
            "--set steps.0.prune_chanels.sparsity=1: there is no 'prune_chanels' in steps.0; "
            "did you mean 'prune_channels'?",
        ),
        (
            "steps.0.prune_channels.sparsty=1",
            "steps[0]: prune_channels has no setting 'sparsty'; did you mean 'sparsity'?",
        ),
        ("steps.2.int8=1", "--set steps.2.int8=1: steps has entries 0 to 1, not 2"),
        ("steps.7=int8", "--set steps.7=int8: steps has entries 0 to 1, not 7"),
        ("seeed=1", "there is no setting 'seeed'; did you mean 'seed'?"),
        ("require.size.x=1", "--set require.size.x=1: require.size is '0.2x', which has no"),
        ("seed=[", "--set seed=[: line 1: "),
    ],
)
def test_overrides_that_fit_nowhere_are_refused(tmp_path, override, message):
    assert fails(write(tmp_path), override).startswith(f"digits.yaml: {message}")


def test_weights_are_found_beside_the_recipe_then_here_then_in_the_models_folder(
    tmp_path, monkeypatch
):
    folders = [tmp_path / name for name in ("recipe", "here", "models")]
    for folder in folders:
        folder.mkdir()
        write(folder, "", name="w.pt")
    text = DIGITS.replace('digits_cnn"', 'digits_cnn", weights: w.pt')
    path = write(folders[0], text)
    monkeypatch.chdir(folders[1])
    monkeypatch.setenv("MODELZIP_MODELS", str(folders[2]))
    for folder in folders:
        assert load(path).model.weights == str(folder / "w.pt")
        (folder / "w.pt").unlink()
    assert str(folders[2]) in fails(path)


def test_a_plan_is_validated_from_python_as_well():
    plan = validate(Plan, {"steps": [mz.Int8()], "require": {"size": "1 KB"}})
    assert plan.steps == (mz.Int8(),)
    with pytest.raises(SettingError, match=r"steps\[0\]: a step is one name with its settings"):
        validate(Plan, {"steps": [3]})
