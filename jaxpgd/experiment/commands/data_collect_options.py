"""The options of `jaxpgd data collect`, and what is wrong with them."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from jaxpgd.errors import InputError, check

RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class Collection:
    """The options of `jaxpgd data collect`."""

    env: str
    out: str
    id: str = ""  # default: jaxpgd/ENV/POLICY-local-v0
    policy: str = ""  # "random" (default), or ARM[:SEED] of `run`
    run: str = ""
    actor: str = ""  # npz file, see `stored_actor`
    greedy: bool = False
    noise: float = 0.0
    epsilon: float = 0.0
    expert_fraction: tuple[float, ...] = ()
    transitions: int | None = None  # default 100,000, where `episodes` is not given either
    episodes: int | None = None
    seed: int = 0
    reference_return: float | None = None
    measured_episodes: int = 50
    env_kwargs: str = "{}"

    @property
    def acting(self) -> str:
        """What acts, in words."""
        if self.actor:
            return f"the actor {Path(self.actor).name}"
        return f"{self.policy} of {Path(self.run).name}" if self.run else "the random policy"

    @property
    def dataset_id(self) -> str:
        """The id given, else one of the environment's and the policy's names."""
        policy = Path(self.actor).stem if self.actor else self.policy or RANDOM
        shares = "".join(f"-{100 * f:g}" for f in self.expert_fraction)
        return self.id or f"jaxpgd/{_slug(self.env.rpartition(':')[2])}/{_slug(policy + shares)}-local-v0"


def _slug(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text).strip("-").lower()


def check_options(o: Collection) -> dict[str, Any]:
    """Raise InputError for options that exclude each other or are out of range; returns the keywords of the environment."""
    check(not (o.policy and o.actor), "--policy, --actor", (o.policy, o.actor), "one of them")
    of_run = bool(o.policy) and o.policy != RANDOM
    check(not of_run or bool(o.run), "--run", o.run, f"the run directory of --policy {o.policy}")
    check(of_run or not o.run, "--policy", o.policy, "ARM[:SEED] of --run")
    needs_policy = {
        "--greedy": o.greedy, "--noise": o.noise, "--epsilon": o.epsilon, "--expert-fraction": o.expert_fraction,
    }  # fmt: skip
    for name, given in needs_policy.items():
        check(of_run or bool(o.actor) or not given, name, given, "a policy with it", "Give --actor, or --run and --policy.")
    check(0 <= o.noise < math.inf, "--noise", o.noise, "a standard deviation, not below 0")
    check(0 <= o.epsilon <= 1, "--epsilon", o.epsilon, "a probability in [0, 1]")
    check(all(0 <= f <= 1 for f in o.expert_fraction), "--expert-fraction", o.expert_fraction, "fractions in [0, 1]")
    check(not (o.epsilon and o.expert_fraction), "--epsilon, --expert-fraction", (o.epsilon, o.expert_fraction), "one of them")
    check(o.transitions is None or o.episodes is None, "--transitions, --episodes", (o.transitions, o.episodes), "one of them")
    check(o.transitions is None or o.transitions > 0, "--transitions", o.transitions, "a number above 0")
    check(o.episodes is None or o.episodes > 0, "--episodes", o.episodes, "a number above 0")
    check(o.measured_episodes > 0, "--measured-episodes", o.measured_episodes, "a number above 0")
    check(o.seed >= 0, "--seed", o.seed, "a number not below 0")
    finite = o.reference_return is None or math.isfinite(o.reference_return)
    check(finite, "--reference-return", o.reference_return, "a finite number")
    return _keywords(o.env_kwargs)


def _keywords(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"--env-kwargs = {text!r}: expected a JSON object such as '{{\"max_episode_steps\": 500}}'.")
    return found
