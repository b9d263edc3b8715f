"""What figures call arms, methods and measured columns: words and units in place of the names of fields."""

from collections.abc import Mapping

NAMES: Mapping[str, str] = {
    "world_model": "world model",
    "dydiff": "DyDiff",
    "oneoff": "one-off",
    "bc": "BC",
    "td3_bc": "TD3+BC",
    "iql": "IQL",
    "cql": "CQL",
    "diffusion_ql": "Diffusion-QL",
    "rebrac": "ReBRAC",
    "loss": "training loss",
    "validation_loss": "validation loss",
    "smc": "SMC",
    "reconstruction-held": "reconstruction, states held",
    "euler": "Euler",
    "heun": "Heun",
    "dpmpp_2m": "DPM-Solver++(2M)",
    "dpmpp_2m_sde": "SDE-DPM-Solver++(2M)",
    "dpmpp_3m": "DPM-Solver++(3M)",
    "dpmpp_3m_sde": "SDE-DPM-Solver++(3M)",
}
_DEVIATIONS = "(standard deviations)"
LABELS: Mapping[str, str] = {
    "return": "return per episode",
    "value_error": "value error (discounted return)",
    "ood_actions": "share of out-of-distribution actions",
    "length": "length of an episode (steps)",
    "synthetic_return": "return of a synthetic trajectory",
    "synthetic_length": "length of a synthetic trajectory (steps)",
    "log_likelihood": "log-likelihood (nats per action)",
    "policy_log_likelihood": "log-likelihood (nats per action)",
    "policy_log_likelihood_se": "standard error of the log-likelihood (nats per action)",
    "dynamics_error": f"one-step dynamics error {_DEVIATIONS}",
    "dynamics_error_rms": f"one-step dynamics error, root mean square {_DEVIATIONS}",
    "dynamics_error_median": f"one-step dynamics error, median {_DEVIATIONS}",
    "dynamics_error_share": "one-step dynamics error over that of s' = s",
    "open_loop_error": f"open-loop error {_DEVIATIONS}",
    **{f"open_loop_error_{k}": f"open-loop error after {k} steps {_DEVIATIONS}" for k in (4, 8, 16, 31)},
    "coverage": "coverage of held-out windows",
    "density": "density around held-out windows",
    "classifier_accuracy": "accuracy of a classifier of real and synthetic windows",
    "synthetic_value": "discounted return of a synthetic trajectory",
    "value_bias": "bias of the discounted return (standard deviations of real windows)",
    "value_distance": "Wasserstein-1 distance of the discounted returns (standard deviations of real windows)",
    "terminal_agreement": "share of steps at which the simulator agrees on the end",
    "training_seconds": "training of the models (seconds)",
    "training_core_seconds": "training of the models (core-seconds)",
    "total_training_seconds": "training, models included (seconds)",
    "total_training_core_seconds": "training, models included (core-seconds)",
    "sampling_seconds": "sampling (seconds)",
    "persistence": f"one-step error of s' = s {_DEVIATIONS}",
    "reward_error": "reward error (units of the reward)",
    "surviving_reward_error": "reward error of trajectories without a terminal (units of the reward)",
    "sliced_wasserstein": f"sliced Wasserstein-1 distance to held-out windows {_DEVIATIONS}",
    "sliced_wasserstein_1": f"sliced Wasserstein-1 distance to held-out windows {_DEVIATIONS}",
    "sliced_wasserstein_2": f"sliced Wasserstein-2 distance to held-out windows {_DEVIATIONS}",
    "state_error": f"state error {_DEVIATIONS}",
    "state_error_se": f"standard error of the state error {_DEVIATIONS}",
    "state_distance": f"sliced Wasserstein-1 distance between the sets of states {_DEVIATIONS}",
    "return_error": "absolute error of the return",
    "return_error_se": "standard error of the error of the return",
    "state_error_rms": "state error over the rollout (standard deviations)",
    "state_error_rms_se": "standard error of the state error over the rollout",
    "state_distance_mean": "distance between the sets of states, mean over the rollout",
    "state_error_last": f"state error at the last step {_DEVIATIONS}",
    "state_distance_last": f"sliced Wasserstein-1 distance between the sets of states at the last step {_DEVIATIONS}",
    "return_bias": "bias of the return",
    "return_bias_se": "standard error of the bias of the return",
    "terminal_rate": "share of trajectories that end in a terminal",
    "truncated_rate": "share of rollouts that are cut where the ensemble disagrees",
    "true_terminal_rate": "share of true rollouts that end in a terminal",
    "alive": "share of trajectories that have not ended",
    "true_alive": "share of true rollouts that have not ended",
    "divergence": "KL divergence to the exact target (nats)",
    "coefficient": "guidance coefficient λ",
    "lambda": "guidance coefficient λ",
    "percent": "share of the dataset (%)",
    "forward_equivalents": "cost of a trajectory (forward passes)",
} | dict.fromkeys(("samples", "target", "behaviour", "policy"), "density")


def name_of(label: str) -> str:
    """What figures call an arm, a guidance, a solver, or anything else that has a label."""
    return NAMES.get(label, label.replace("_", " "))


def label_of(column: str) -> str:
    """The axis label of a measured column: words, and the unit in brackets. A column of scores names their family."""
    if column.startswith("score"):
        return f"normalised {column}"
    return LABELS.get(column, column.replace("_", " "))
