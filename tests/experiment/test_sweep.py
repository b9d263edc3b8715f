import dataclasses
from typing import Any

import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.overrides import read_overrides
from jaxpgd.experiment.sweep import read_sweep, sweepable, with_setting


def config(*words: str, **changes: Any) -> Any:
    return load_config(None, {"sweep": list(words), **changes})


def test_nothing_swept_is_one_setting_without_a_label() -> None:
    sweep = read_sweep(config())
    assert sweep.settings == ({},) and sweep.label(0) == ""
    assert with_setting(config(), {}) == config()


def test_settings_are_the_product_of_all_values() -> None:
    swept = config("agent.alpha", "1,2.5", "guidance.coefficient", "0.3,1,3")
    sweep = read_sweep(swept)
    assert len(sweep.settings) == 6
    assert sweep.settings[1] == {"agent.alpha": 1.0, "guidance.coefficient": 1.0}
    assert sweep.label(5) == "alpha 2.5, coefficient 3"
    alone = with_setting(swept, sweep.settings[5])
    assert (alone.agent.td3_bc.alpha, alone.guidance.coefficient, alone.sweep) == (2.5, 3.0, ())


def test_the_command_line_names_a_setting_and_its_values() -> None:
    assert read_overrides(["--sweep", "agent.alpha", "1,2.5,4"]) == {"sweep": ["agent.alpha", "1,2.5,4"]}


def test_an_arm_without_guidance_has_no_coefficients() -> None:
    swept = config("agent.gamma", "0.9999999,1", "guidance.coefficient", "0.3,1")
    assert len(read_sweep(swept).settings) == 4
    sweep = read_sweep(swept, "real")
    assert [sweep.label(i) for i in range(2)] == ["gamma 0.9999999", "gamma 1"]


@pytest.mark.parametrize("kind", ["td3_bc", "iql", "bc", "cql", "diffusion_ql", "rebrac"])
def test_what_can_be_swept_are_fields_of_the_agents_section(kind: str) -> None:
    chosen = load_config(None, {"agent": {"kind": kind}})
    fields = {f.name for f in dataclasses.fields(getattr(chosen.agent, kind))}
    names = [name.removeprefix("agent.") for name in sweepable(chosen)[:-1]]
    assert set(names) <= fields and not {"hidden", "critic_updates", "n_actions", "steps"} & set(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.alpha"], "names and values in turn"),
        (["agent.hidden", "64,128"], "sweep = 'agent.hidden': expected one of agent.lr"),
        (["agent.alpha", "1,x"], "sweep of agent.alpha = '1,x': expected numbers separated by commas"),
        (["agent.alpha", "1,nan"], "numbers separated by commas"),
        (["agent.alpha", "1,1"], "each value once"),
        (["agent.alpha", "1", "agent.alpha", "2"], "each name once"),
        (["agent.lr", "1e-3,-1"], "agent.td3_bc.lr = -1.0: expected a number above 0"),
    ],
)
def test_what_cannot_be_swept_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read_sweep(config(*words))


def test_a_coefficient_that_is_chosen_or_unused_is_not_swept() -> None:
    words = ("guidance.coefficient", "0.3,1")
    with pytest.raises(InputError, match="one coefficient for all agents"):
        read_sweep(config("agent.alpha", "1,2", guidance={"max_dynamics_error": 1.5}))
    for changes in ({"guidance": {"target_ess": 0.5}}, {"arms": ["real"]}):
        with pytest.raises(InputError, match="other names where"):
            read_sweep(config(*words, **changes))
