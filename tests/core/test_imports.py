import sys
from pathlib import Path

import pytest

from modelzip.core import imports
from modelzip.errors import SettingError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_finds_a_module_beside_the_recipe_and_its_neighbours(folder: Path):
    (folder / "neighbour_net.py").write_text("VALUE = 7")
    (folder / "net_beside.py").write_text(
        "def f(x):\n    import neighbour_net as n\n    return n.VALUE + x"
    )
    assert imports.call("net_beside:f", {"x": 1}, beside=folder) == 8


@pytest.mark.parametrize("target", ["math", "math:", ":sqrt", "", 3])
def test_a_target_without_colon_is_refused(target):
    with pytest.raises(SettingError, match="build must be 'module:function', got"):
        imports.resolve(target)


def test_a_missing_module_is_named_with_the_folder_looked_in(folder: Path):
    with pytest.raises(SettingError, match=r"no module 'no_such_net' in .* or on Python's path"):
        imports.resolve("no_such_net:f", beside=folder)


def test_a_missing_submodule_is_a_setting_error():
    with pytest.raises(SettingError, match=r"no module 'json.no_such' on Python's path"):
        imports.resolve("json.no_such:f")


def test_what_a_module_fails_to_import_itself_is_not_blamed_on_the_target(folder: Path):
    (folder / "needs_more.py").write_text("import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        imports.resolve("needs_more:f", beside=folder)


def test_a_misspelt_function_gets_a_hint():
    with pytest.raises(
        SettingError, match="module math has no function 'sqr'; did you mean 'sqrt'"
    ):
        imports.resolve("math:sqr")


def test_a_constant_is_not_a_function():
    with pytest.raises(SettingError, match=r"math:pi is 3\.14.*, which is not a function"):
        imports.resolve("math:pi")


def test_finds_lazily_exported_names():
    assert imports.resolve("modelzip:MagnitudePrune").__name__ == "MagnitudePrune"


def test_a_second_module_of_one_name_is_refused_rather_than_mixed_up(folder: Path):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "same_net.py").write_text("def f(): return 1")
    imports.resolve("same_net:f", beside=folder / "a")
    with pytest.raises(SettingError, match="module 'same_net' is already loaded from"):
        imports.resolve("same_net:f", beside=folder / "b")


def test_arguments_are_checked_against_the_signature(folder: Path):
    (folder / "signed.py").write_text(
        "def f(*, size, depth=1): return size\ndef g(): return 1\ndef h(**k): return k"
    )
    with pytest.raises(SettingError, match="signed:f has no argument 'dept'; did you mean 'depth'"):
        imports.call("signed:f", {"size": 1, "dept": 2}, beside=folder)
    with pytest.raises(SettingError, match="signed:f needs size"):
        imports.call("signed:f", {}, beside=folder)
    with pytest.raises(SettingError, match="signed:g has no argument 'size'; it takes none"):
        imports.call("signed:g", {"size": 1}, beside=folder)
    assert imports.call("signed:h", {"any": 1}, beside=folder) == {"any": 1}


def test_a_builtin_without_signature_is_called_as_it_is():
    assert imports.call("builtins:dict", {"a": 1}) == {"a": 1}
