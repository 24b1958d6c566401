import pytest

from modelzip.core.prepare import Prepared
from modelzip.errors import SettingError
from modelzip.recipe.ranking import ranking
from modelzip.zoo import digits_cnn

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4}
data: {build: "modelzip.data:digits", batch_size: 64, calibration: 128}
steps: [int8]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_the_layers_of_a_recipe_are_ranked(recipe):
    rows = ranking(recipe, bits=2)
    assert sorted(row.layer for row in rows) == ["0", "11", "3", "6"]
    assert [row.kl for row in rows] == sorted((row.kl for row in rows), reverse=True)
    assert sum(row.size_share for row in rows) == pytest.approx(1)


def test_the_folder_of_a_run_has_the_trained_original(recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    text = RECIPE.replace("width: 4", "width: 4, train: {epochs: 1}")
    (folder / "recipe.yaml").write_text(text)
    trained = digits_cnn(width=4)
    Prepared(trained).save(folder / "original.safetensors")
    assert len(ranking(folder, bits=8)) == 4


def test_a_model_that_is_yet_to_be_trained_is_refused(recipe):
    recipe.write_text(RECIPE.replace("width: 4", "width: 4, train: {epochs: 1}"))
    with pytest.raises(SettingError, match=r"small\.yaml trains its model first; run it"):
        ranking(recipe, bits=8)
