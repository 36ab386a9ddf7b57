"""What users say of devices and links: presets, shorthand, what it comes to worker by worker, and every mistake."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.system import PRESETS, Outage, Profile, System


def test_a_profile_says_what_every_worker_has() -> None:
    system = System.of(Profile(step_seconds=4, power="4:2:1", up=[1, 2, 3], down=9, latency=0.5, shared=7), 3)
    assert system.step_seconds.tolist() == [1, 2, 4]
    assert system.speeds.tolist() == [4, 2, 1]
    assert system.up.tolist() == [1, 2, 3]
    assert system.down.tolist() == [9, 9, 9]
    assert (system.latency, system.shared, system.workers, system.outages) == (0.5, 7, 3, None)


def test_without_a_word_all_are_alike() -> None:
    system = System.of(Profile(), 2, seed=5)
    assert system.step_seconds.tolist() == [0.01, 0.01]
    assert system.up.tolist() == system.down.tolist() == [12.5e6] * 2
    assert math.isinf(system.shared)
    assert System.of(Profile(step_seconds=0), 2).speeds.tolist() == [1, 1]


def test_powers_are_a_list_or_a_text() -> None:
    one, other = (System.of(Profile(power=power), 4) for power in ("4:2:2:1", [4, 2, 2, 1]))
    assert one.step_seconds.tolist() == other.step_seconds.tolist() == [0.0025, 0.005, 0.005, 0.01]


@pytest.mark.parametrize(
    ("text", "speeds"), [("4:2:1:...", [4, 2, 1, 4, 2]), ("3:...", [3] * 5), ("2:1:1:1:1:9:...", [2, 1, 1, 1, 1])]
)
def test_dots_begin_again_for_any_number_of_workers(text: str, speeds: list[float]) -> None:
    power = 1 / System.of(Profile(step_seconds=1, power=text), 5).step_seconds
    assert power.tolist() == pytest.approx(speeds)


def test_a_spread_is_drawn_from_the_seed() -> None:
    def logs(seed: int, spread: float = 0.5) -> np.ndarray:
        return np.log(System.of(Profile(step_seconds=1, spread=spread), 4000, seed).step_seconds)

    assert (logs(1) == logs(1)).all()
    assert not (logs(1) == logs(2)).any()
    assert logs(1).std() == pytest.approx(0.5, rel=0.06)  # five standard errors
    assert logs(1, 1.0) == pytest.approx(2 * logs(1))


@pytest.mark.parametrize("name", PRESETS.entries)
def test_what_is_given_takes_precedence_over_a_preset(name: str) -> None:
    preset = PRESETS.build(name)
    assert Profile(preset=name) == replace(Profile(**preset), preset=name)
    for key, value in preset.items():
        changed = Profile(preset=name, **{key: 2 * value})
        assert getattr(changed, key) == 2 * value
        assert all(getattr(changed, other) == preset[other] for other in preset if other != key)


def test_a_bandwidth_takes_precedence_over_a_presets_directions() -> None:
    assert System.of(Profile(preset="phones-4g", bandwidth=5), 1).up.tolist() == [5]
    mixed = System.of(Profile(preset="phones-4g", bandwidth=5, up=3), 1)
    assert (mixed.up.tolist(), mixed.down.tolist()) == ([3], [5])


def test_none_is_not_given() -> None:
    assert Profile(preset="phones-4g", mean_up=None) == Profile(preset="phones-4g")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.sampled_from(list(PRESETS.entries)),
            "bandwidth": st.sampled_from([5.0, math.inf]),
            "up": st.sampled_from([7.0, [1.0, 2.0]]),
            "shared": st.just(3.0),
            "power": st.sampled_from(["2:1", [2.0, 1.0]]),
            "mean_down": st.just(2.0),
            "outages": st.just([Outage(worker=1, at=2.0)]),
        },
    )
)
def test_a_resolved_profile_means_the_same_again(keys: dict[str, Any]) -> None:
    if "mean_down" in keys and keys.get("preset") != "phones-4g":  # which has the other mean
        keys["mean_up"] = 4.0
    made = Profile(**keys)
    assert replace(made) == made
    assert replace(made, step_seconds=3.0).step_seconds == 3.0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"step_seconds": -1}, "step_seconds: Input should be greater than or equal to 0, got -1"),
    ({"step_seconds": math.inf}, "step_seconds: Input should be a finite number"),
    ({"flops": 0}, "flops: Input should be greater than 0"),
    ({"compute": "guessed"}, "compute: Input should be 'stated', 'measured' or 'flops', got 'guessed'"),
    ({"power": 4}, "power: expected a list or a string, got 4"),
    ({"power": "fast:slow"}, "power='fast:slow': expected positive numbers, one per worker, such as 4:2:2:1"),
    ({"power": "4:2:"}, "power='4:2:': expected positive numbers"),
    ({"power": "4:0"}, "power='4:0': expected positive numbers"),
    ({"power": "4:nan"}, "power='4:nan': expected positive numbers"),
    ({"power": "4:inf"}, "power='4:inf': expected positive numbers"),
    ({"power": ""}, "power='': expected positive numbers"),
    ({"power": "..."}, "power='...': expected positive numbers"),
    ({"power": ":..."}, "power=':...': expected positive numbers"),
    ({"power": "4:...:2"}, "power='4:...:2': expected positive numbers"),
    ({"power": "4:0:..."}, "power='4:0:...': expected positive numbers"),
    ({"power": [1, -1]}, "power.1: Input should be greater than 0, got -1"),
    ({"power": [1, math.nan]}, "power.1: Input should be a finite number, got nan"),
    ({"spread": -1}, "spread: Input should be greater than or equal to 0"),
    ({"bandwidth": 0}, "bandwidth: Input should be greater than 0, got 0"),
    ({"bandwidth": math.nan}, "bandwidth: Input should be greater than 0, got nan"),
    ({"up": 0}, "up: expected a number greater than 0 or a list, got 0"),
    ({"up": "fast"}, "up: expected a number or a list"),
    ({"down": [5, -5]}, "down.1: Input should be greater than 0, got -5"),
    ({"shared": -1}, "shared: Input should be greater than 0"),
    ({"latency": -1}, "latency: Input should be greater than or equal to 0"),
    ({"latency": math.nan}, "latency: Input should be"),
    ({"mean_up": 5}, "mean_up and mean_down describe one process; give both, or neither"),
    ({"mean_down": 5}, "mean_up and mean_down describe one process; give both, or neither"),
    ({"mean_up": 1e-9, "mean_down": 1}, "mean_up: Input should be greater than or equal to 0.001"),
    ({"preset": "wifi"}, "unknown preset 'wifi': choose one of cross-silo-wan, datacenter, iot, phones-4g"),
    ({"preset": ["iot"]}, "preset: Input should be a valid string"),
    ({"preset": "iot", "step_seconds": -1}, "step_seconds: Input should be greater than or equal to 0"),
    ({"preset": "iot", "speed": 1}, "speed"),
    ({"outages": {"worker": 1}}, "outages: Input should be a valid list"),
    ({"outages": [3]}, "outages.0: Input should be a dictionary"),
    ({"outages": [{"worker": 1}]}, "outages.0.at: Field required"),
    ({"outages": [{"worker": -1, "at": 1}]}, "outages.0.worker: Input should be greater than or equal to 0"),
    ({"outages": [{"worker": 0, "at": -1}]}, "outages.0.at: Input should be greater than or equal to 0"),
    ({"outages": [{"worker": 0, "at": 3, "until": 3}]}, "until=3: worker 0 goes at 3; give a later time"),
    ({"outages": [{"worker": 0, "at": 3, "until": 1}]}, "until=1: worker 0 goes at 3; give a later time"),
    ({"outages": [{"worker": 0, "at": 3, "until": math.nan}]}, "until=nan: worker 0 goes at 3; give a later time"),
]


@pytest.mark.parametrize(("keys", "says"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_one_clear_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Profile(**keys)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"power": "4:2:1"}, "profile: power has 3 numbers for 2 workers; give one for each"),
        ({"power": []}, "profile: power has 0 numbers for 2 workers; give one for each"),
        ({"up": [1]}, "profile: up has 1 numbers for 2 workers; give one for each"),
        ({"down": []}, "profile: down has 0 numbers for 2 workers; give one for each"),
        ({"outages": [Outage(worker=2, at=0)]}, "profile: outages name worker 2 of 2; the last is 1"),
    ],
)
def test_a_profile_of_other_devices_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        System.of(Profile(**keys), 2)
    assert str(caught.value) == says
