import pytest

from modelzip.archive.integers.jit import jit


def doubled(n):
    return 2 * n


def test_without_a_folder_for_its_cache_code_is_compiled_all_the_same(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert jit(doubled)(21) == 42
    assert jit(doubled) is not doubled
