"""The suite `sampling`: its methods are what their names say, its baselines are named."""

import dataclasses

import pytest

from benchmarks.speed import sampling


@pytest.mark.parametrize("method", sampling.METHODS, ids=lambda m: m.name)
def test_a_sampling_method_is_what_its_name_says(method):
    sampler, guidance = method.sampler, method.guidance
    if method.published:
        assert (sampler.kind, sampler.steps) == ("heun", 256)
        assert guidance is None or guidance.kind == "published"
        return
    name = rest = method.name
    assert name.startswith(f"{sampler.kind} {sampler.steps}") or name == "smc 32"
    assert ("of [0.01, 20]" in name) == (sampler.sigma_max == 20.0)
    assert (f"{method.features} features" in rest) == (method.features > 0)
    kinds = {"reconstruction": "reconstruction", "moment": "moment", "nudged": "published"}
    named = [kind for word, kind in kinds.items() if word in rest]
    assert named == ([] if guidance is None or guidance.kind == "smc" else [guidance.kind])


@pytest.mark.slow
def test_the_sampling_suite_names_its_baselines():
    chosen = ("published, unguided", "published, nudged", "smc 32")
    few = lambda method: dataclasses.replace(method, sampler=dataclasses.replace(method.sampler, steps=2))
    methods = tuple(few(method) for method in sampling.METHODS if method.name in chosen)
    found = sampling.run(sampling.Size(trajectories=2, features=8, blocks=1, window=8, repeats=1, methods=methods))["rows"]
    ratios = {row["method"]: row["ratio"] for row in found}
    assert ratios["published, unguided"] == ratios["published, nudged"] == 1.0
    assert ratios["smc 32"] > 0 and len(ratios) == 3
