"""The config that agents of the guided arm have come to: what a sweep has set, what the run has decided."""

import dataclasses
from typing import Any

import numpy as np

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.resolved import with_coefficient
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.sweep import read_sweep, with_setting


def agent_config(run: RunView, config: Config, agent: int = 0) -> Config:
    """The effective `config` of a run for one agent of the guided arm: with its setting where the run sweeps over several.

    Agents are counted in order, the seeds of a setting together.
    """
    if run.config.guidance.max_dynamics_error > 0:  # which has decided one coefficient for all
        return config
    settings = read_sweep(run.config).settings
    return with_setting(config, settings[min(agent // run.config.seeds, len(settings) - 1)])


def scoring_config(run: RunView) -> Config:
    """The config at which the trajectories of a run are scored: of its first agent, with one coefficient.

    Where the effective sample size chooses coefficients it is the mean over seeds of the last ones. A coefficient of 0 is that
    of an unguided refresh or of a lost seed, and does not count.
    """
    config = agent_config(run, run.effective())
    if run.config.guidance.target_ess == 0:
        return config
    chosen = [[c for c in seeds if c > 0] for seeds in _logged(run, "synthetic_coefficient")]
    guided = [seeds for seeds in chosen if seeds]
    config = with_coefficient(config, float(np.mean(guided[-1]))) if guided else config
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, target_ess=0.0))


def _logged(run: RunView, name: str) -> list[Any]:
    return [row[name] for row in run.log.read() if row["stage"] == "agent-guided" and name in row]
