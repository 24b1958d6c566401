import gc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.errors import SettingError
from modelzip.measure.rounds import measure_latency
from modelzip.runtime.inputs import InputSpec


class Time:
    """A clock that only sessions move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


class Timed:
    """A session whose run number k takes `seconds(k)`."""

    inputs: tuple[InputSpec, ...] = ()

    def __init__(self, name: str, time: Time, seconds: Callable[[int], float]) -> None:
        self.name, self.time, self.seconds, self.runs = name, time, seconds, 0

    def run(self, inputs: object) -> list[np.ndarray]:
        raise NotImplementedError

    def bind(self, inputs: object) -> Callable[[], object]:
        def once() -> None:
            self.time.now += self.seconds(self.runs)
            self.time.calls.append(self.name)
            self.runs += 1

        return once


def constant(seconds: float) -> Callable[[int], float]:
    return lambda _: seconds


def test_constant_times_are_found_exactly() -> None:
    time = Time()
    sessions = {"a": Timed("a", time, constant(0.004)), "b": Timed("b", time, constant(0.001))}
    found = measure_latency(sessions, None, clock=time)
    assert found["a"].ratio == found["a"].ratio_low == found["a"].ratio_high == 1
    assert found["b"].median_ms == pytest.approx(1)
    assert found["b"].p95_ms == pytest.approx(1)
    assert found["b"].ratio == pytest.approx(0.25)
    assert found["b"].speedup == pytest.approx(4)
    assert (found["a"].repeats, found["b"].repeats) == (1, 2)


def test_each_round_times_each_model_once_in_changing_order() -> None:
    time = Time()
    sessions = {name: Timed(name, time, constant(0.01)) for name in "abc"}
    measure_latency(sessions, None, rounds=30, clock=time)
    rounds = ["".join(time.calls[i : i + 3]) for i in range(3 * 6, len(time.calls), 3)]
    assert len(rounds) == 30
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) == 6


def test_a_slow_spell_cancels_in_the_ratio() -> None:
    time = Time()

    def slow_spell(seconds: float) -> Callable[[int], float]:
        return lambda _: seconds * (3 if 0.2 < time.now < 0.6 else 1)

    sessions = {
        "a": Timed("a", time, slow_spell(0.010)),
        "b": Timed("b", time, slow_spell(0.005)),
    }
    found = measure_latency(sessions, None, clock=time)["b"]
    assert found.ratio == pytest.approx(0.5)
    assert found.ratio_low <= 0.5 <= found.ratio_high
    assert found.p95_ms > 14


@given(seed=st.integers(0, 1000))
def test_the_interval_holds_the_ratio(seed: int) -> None:
    time = Time()
    rng = np.random.default_rng(seed)
    noisy = [lambda _, s=s: s * rng.uniform(0.9, 1.1) for s in (0.01, 0.02)]
    sessions = {name: Timed(name, time, noisy[i]) for i, name in enumerate("ab")}
    found = measure_latency(sessions, None, clock=time, budget_s=1e9)["b"]
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.ratio_low > 1.7
    assert found.ratio_high < 2.35


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.001, 5), (0.95, 10), (100, 40)])
def test_the_budget_bounds_the_rounds(budget_s: float, rounds: int) -> None:
    time = Time()
    found = measure_latency(
        {"a": Timed("a", time, constant(0.1))}, None, budget_s=budget_s, clock=time
    )
    assert found["a"].rounds == rounds


def test_garbage_collection_is_off_while_timing_and_restored() -> None:
    time, seen = Time(), []

    def spy(_: int) -> float:
        seen.append(gc.isenabled())
        return 0.01

    measure_latency({"a": Timed("a", time, spy)}, None, clock=time)
    assert seen[6:] == [False] * 40
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 4}, "rounds must be an integer of at least 5, got 4"),
        ({"budget_s": 0}, "budget_s must be above 0, got 0"),
        ({"min_timing_ms": 0}, "min_timing_ms must be above 0, got 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        measure_latency({"a": Timed("a", Time(), constant(1))}, None, **settings)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(SettingError, match="there are no sessions to time; give at least one"):
        measure_latency({}, None)
