"""Every hyperparameter, as nested frozen dataclasses. They know no component: any module may take its section.

`jaxpgd.experiment.config` reads them from TOML files, knows the presets and checks values.
"""

import dataclasses
from typing import Literal

SamplerKind = Literal["heun", "euler", "ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "auto"]
Arm = Literal["real", "unguided", "guided", "dydiff", "world_model"]  # where an agent's data come from; guided: PGD


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which dataset, and which windows of it train the denoiser."""

    name: str = "point2d"  # Minari id, path of a D4RL .hdf5 or flat .npz file, "point2d" or "point2d-N" (N steps)
    env_id: str = ""  # Gymnasium id to evaluate in; empty: the one that the dataset names
    window: int = 16  # steps per training window, and of synthetic trajectories
    stride: int = 1  # steps between window starts
    add_episode_starts: bool = True  # add the window that starts each episode
    add_terminals: bool = True  # add the window that ends in each terminal
    allow_timeout_end: bool = True  # keep windows whose last step is a timeout
    pad_short: bool = False  # episodes shorter than a window have one, padded at its end; false: they are in none
    terminal_repeats: int = 1  # times that a window ending in a terminal is listed (published: once)
    done_scale: float = 0.25  # least number that divides the terminal flag in tokens; 0: its standard deviation, as published
    normalisation: Literal["standard", "limits"] = "standard"  # of tokens: mean 0, variance 1; or limits at -1, 1, raw actions
    validation_fraction: float = 0.05  # share of episodes held out of denoiser training
    episodes: int = 1000  # episodes generated, for built-in environments only
    clip_actions: bool = False  # actions that leave their bounds are clipped; false: data with such is refused
    reward_scale: float = 1.0  # what is learned is scale * (reward + shift); reports stay in the dataset's own units
    reward_shift: float = 0.0  # added before the scale (IQL on antmaze: -1)
    reward_normalisation: Literal["none", "return_range", "standard"] = "none"  # to a range of 1000, to mean 0 and std 1


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """Network, EDM training distribution and optimiser (EDM table 1; PGD table of hyperparameters)."""

    features: int = 32  # channels of the first U-Net block; doubled per block
    blocks: int = 3
    groups: int = 8  # group normalisation
    norm: Literal["sequence", "step"] = "sequence"  # statistics over the whole sequence, or of each time step alone
    block: Literal["plain", "residual"] = "residual"  # "plain": the published network
    compute: Literal["float32", "bfloat16"] = "float32"  # of products and activations; parameters and statistics are float32
    convolution: Literal["gathered", "primitive"] = "gathered"  # how it is computed, not what; gathered is the fast one on CPU
    sigma_data: float = 1.0
    p_mean: float = -1.2  # log sigma ~ Normal(p_mean, p_std) in training
    p_std: float = 1.2
    p_high: float = 0.0  # share of training noise levels drawn from [1, 80] instead, uniformly in log sigma
    steps: int = 3000  # gradient steps, where epochs is 0
    epochs: int = 0  # passes over the windows
    batch_size: int = 64
    peak_lr: float = 2e-3
    warmup_fraction: float = 0.1  # of all steps
    initial_lr_fraction: float = 0.1  # of peak_lr, at step 0
    ema: float = 0.999  # decay of the averaged weights
    ema_every: int = 1  # steps between averages
    gradient_clip: float = 0.0  # global norm; 0: none
    validate_every: int = 500  # steps between validation losses
    validation_batches: int = 8


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Noise levels and stochasticity of sampling (EDM section 5, algorithm 2)."""

    kind: SamplerKind = "dpmpp_2m_sde"  # dpmpp_*: no churn; "auto": the cheapest as good as 256 Heun steps, measured unguided
    steps: int = 32  # noise levels; heun evaluates the network twice at each but the last, the others once
    sigma_min: float = 0.002  # least noise level
    sigma_max: float = 80.0  # largest noise level
    rho: float = 7.0  # how noise levels crowd towards the least (EDM equation 5)
    churn: float = 80.0  # S_churn: total of noise put back over all steps
    churn_min: float = 0.05  # noise is put back for sigma in [churn_min, churn_max]
    churn_max: float = 50.0
    churn_noise: float = 1.003  # S_noise
    predictor: Literal["churned", "unchurned"] = "churned"  # where the Euler step starts; "unchurned" as official code
    batch_size: int = 0  # trajectories sampled at once; 0: as many as fit the device's memory


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """How samples are moved towards the policy (PGD section 4)."""

    kind: Literal["published", "reconstruction", "moment", "smc"] = "moment"  # smc steps in its own way
    coefficient: float = 1.0  # lambda (published: per 256 steps); with target_ess or max_dynamics_error the largest
    target_ess: float = 0.0  # above 0: largest lambda at which weighted unguided samples keep this share of effective size
    max_dynamics_error: float = 0.0  # of runs; above 0: largest lambda whose dynamics error is within this times the unguided
    at: Literal["noised", "denoised"] = "denoised"  # published: where the policy's gradient is taken
    normalise: Literal["none", "safe", "official"] = "safe"  # published: L2-normalise over the trajectory; "official": NaN at 0
    sine: float = 0.3  # published: weight of the sine term in the schedule
    hold_states: bool = False  # reconstruction, moment: no gradient through the policy's observation
    limit: float = 2.0  # all but published: largest change of a denoised entry, in deviations sigma / sqrt(1 + sigma^2) of it
    iterations: int = 2  # moment: steps of conjugate gradients, each costs two forward-equivalents
    damping: float = 0.0  # moment: added to the diagonal of the system
    proposal: Literal["none", "reconstruction", "moment"] = "reconstruction"  # smc: what particles are moved by
    order: Literal["first", "second"] = "second"  # smc: of the steps
    particles: int = 256  # smc: trajectories of a population, at most
    threshold: float = 0.5  # smc: resampled where the effective size falls under this share of the population
    sigma_min: float = 0.0  # guide only for sigma in [sigma_min, sigma_max]
    sigma_max: float = 1e9


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """One-step world model: ensemble, reward model, terminals (PETS, MBPO; DyDiff's table of hyperparameters)."""

    members: int = 7  # networks of the ensemble
    elites: int = 5  # those with the least held-out error are used
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    reward_hidden: tuple[int, ...] = (256, 256)  # reward model and terminal classifier
    lr: float = 1e-3
    weight_decay: float = 5e-5
    batch_size: int = 256
    holdout: float = 0.1  # share of transitions held out
    holdout_most: int = 10_000  # at most so many are held out
    epochs: int = 100  # at most; early stopping ends sooner
    steps_per_epoch: int = 0  # gradient steps; 0: one pass over the training transitions
    patience: int = 5  # epochs without improvement after which a network stops
    termination: str = "auto"  # a rule by name, "learned", or "auto": the environment's known rule


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
    """Rollouts in the world model, as an arm of their own."""

    length: int = 0  # steps per trajectory; 0: as other synthesizers
    sampled: bool = True  # draw next states from the ensemble's Gaussian instead of its mean
    elite: Literal["step", "trajectory"] = "step"  # a member drawn at every step, or once per trajectory
    actions: Literal["sampled", "mode"] = "sampled"  # of the policy
    penalty: float = 0.0  # MOPO: reward minus this times the largest predicted standard deviation


@dataclasses.dataclass(frozen=True)
class DyDiffConfig:
    """Iterated state diffusion under the policy's actions (DyDiff, arXiv 2405.19189)."""

    iterations: int = 2  # M; 0: the first rollout alone
    mix: float = 0.5  # weight of the previous states against the sampled ones
    window: int = 0  # steps per training window, and of trajectories; 0: data.window
    conditions: Literal["clean", "churned", "noised"] = "clean"  # how the network sees first state and actions
    scaled_conditions: bool = False  # scaled down with the noised sample, as published; false: legible at every noise level
    actions: Literal["sampled", "mode"] = "sampled"  # of the policy
    sampled: bool = False  # first rollout: draw from the ensemble's Gaussian instead of its mean
    elite: Literal["step", "trajectory"] = "step"  # first rollout: a member drawn at every step, or once per trajectory


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Which synthetic trajectories are kept, by return (DyDiff section 4.3)."""

    kind: Literal["none", "hardmax", "softmax"] = "none"
    keep: float = 0.6  # share kept
    temperature: float = 0.05  # softmax over standardised returns
    steps: Literal["alive", "all"] = "alive"  # whose rewards are summed; all: also those after a terminal, as published


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """How much synthetic data, and when it is made anew. The regime sets interval and share."""

    kind: Literal["", "real", "unguided", "pgd", "dydiff", "world_model"] = ""  # one arm of this kind; empty: those of `arms`
    regime: Literal["oneoff", "periodic", "continuous", "fifo"] = "periodic"
    trajectories: int = 1024  # capacity of the replay; made at once at the first refresh, except in fifo
    interval: int = 1000  # agent updates between refreshes (all but oneoff)
    fraction: float = 0.1  # continuous, fifo: share of the replay that a refresh makes, replacing the oldest
    length: int = 0  # steps per trajectory; 0: the training window
    drop_last: bool = False  # never learn from a trajectory's last step, as official code; false: where its end is known
    after_terminal: bool = False  # learn from steps after a generated terminal as well, as official code
    synthetic_ratio: float = 0.9375  # share of each batch drawn from synthetic data (PGD: 240 of 256)
    first_unguided: bool = True  # guided arm: the first refresh ignores the untrained policy
    filter: FilterConfig = FilterConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    dydiff: DyDiffConfig = DyDiffConfig()


@dataclasses.dataclass(frozen=True)
class TD3BCConfig:
    """TD3+BC (arXiv 2106.06860) with PGD's settings."""

    lr: float = 3e-4
    gamma: float = 0.99
    polyak: float = 0.005  # target <- target + polyak * (online - target)
    alpha: float = 2.5  # weight of Q against behaviour cloning
    cloning: float = 1.0  # weight of behaviour cloning (DyDiff: a half)
    policy_noise: float = 0.2  # std of target policy smoothing
    noise_clip: float = 0.5
    adam_eps: float = 1e-5
    critic_updates: int = 2  # per update, on a batch each; on one and the same with actor_first
    policy_delay: int = 1  # actor and targets move in every so many-th update (TD3, DyDiff: 2)
    actor: Literal["deterministic", "tanh_gaussian"] = "deterministic"  # tanh_gaussian: a stochastic one (DyDiff)
    actor_first: bool = False  # targets, actor, then critics, on one batch, as official code; false: critics, actor, targets
    init: Literal["uniform", "orthogonal", "lecun_normal"] = "uniform"  # of weights; lecun_normal: Flax's own, as official code
    policy_std: float = 0.5  # std of the Gaussian that stands for the deterministic actor in guidance (PGD: 1)
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class IQLConfig:
    """IQL (arXiv 2110.06169) with PGD's settings."""

    lr: float = 3e-4
    decay_updates: float = 0.0  # cosine decay of the actor's lr to 0 over so many updates (IQL: all of them); 0: none
    gamma: float = 0.99
    polyak: float = 0.005
    tau: float = 0.7  # expectile
    beta: float = 3.0  # inverse temperature of the advantage weights
    advantage_clip: float = 100.0  # upper bound of exp(beta * advantage)
    adam_eps: float = 1e-5
    stale_value: bool = False  # advantages and targets of the value before its step, as official code; false: after it
    init: Literal["uniform", "orthogonal", "lecun_normal"] = "orthogonal"  # of weights; lecun_normal: Flax's own
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class BCConfig:
    """Behaviour cloning with a deterministic actor; settings as those of TD3+BC."""

    lr: float = 3e-4
    adam_eps: float = 1e-8
    policy_std: float = 0.5  # std of the Gaussian that stands for the deterministic actor in guidance (PGD: 1)
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class CQLConfig:
    """CQL(H) on soft actor-critic (arXiv 2006.04779) with DyDiff's settings (arXiv 2405.19189)."""

    actor_lr: float = 3e-5
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-5  # of the entropy temperature
    gamma: float = 0.99
    polyak: float = 0.005
    weight: float = 10.0  # of the conservative term
    cql_temperature: float = 1.0  # of the soft maximum over actions in the conservative term
    n_actions: int = 10  # actions drawn for that term: so many uniformly, from the policy at s, and from it at s'
    initial_alpha: float = 1.0  # entropy temperature at the start; learned
    target_entropy: float = -1.0  # per action dimension
    cloning_updates: float = 0.0  # first updates in which the actor clones the data (CQL's code on MuJoCo: 40,000)
    adam_eps: float = 1e-8
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class DiffusionQLConfig:
    """Diffusion-QL (arXiv 2208.06193) with its paper's settings."""

    lr: float = 3e-4  # of the actor
    critic_lr: float = 3e-4
    decay_updates: float = 0.0  # cosine decay of both to 0 over so many updates (published: all, in code 50 times all); 0: none
    max_q_backup: int = 1  # next actions of every target, of which the largest value counts (published: 10 on most of antmaze)
    gamma: float = 0.99
    polyak: float = 0.005
    eta: float = 1.0  # weight of Q against behaviour cloning
    steps: int = 5  # of the sampling chain
    beta_min: float = 0.1  # noise schedule: log abar(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2), t from 0 to 1
    beta_max: float = 10.0
    ema: float = 0.995  # decay of the averaged actor, which makes the critics' targets
    ema_every: int = 5  # updates between averages
    ema_start: float = 0.0  # updates before which the average stays as initialised (authors' code, DyDiff: 1000)
    gradient_clip: float = 5.0  # global norm of the actor's and of the critics' gradient; 0: none
    candidates: int = 50  # actions of which evaluation takes one
    choice: Literal["softmax", "best", "centre"] = "softmax"  # by softmax of Q, highest Q, or the chain without noise instead
    time_features: int = 16  # sinusoidal features of the step; an even number above 2
    adam_eps: float = 1e-8
    policy_std: float = 0.5  # std of the Gaussian that stands for the policy in guidance, around its chain without noise
    own_score: bool = False  # guidance follows the policy's own score instead of that Gaussian's
    action_reconstruction: Literal["chain", "one_step"] = "chain"  # actor's Q of sampled actions, or of noised, denoised data
    hidden: tuple[int, ...] = (256, 256, 256)
    critic_hidden: tuple[int, ...] = ()  # of the critics; none: as hidden
    critic_activation: Literal["mish", "relu"] = "mish"  # of the critics


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """The offline-RL algorithm and its training length. Only the section of the chosen kind is used."""

    kind: Literal["td3_bc", "iql", "bc", "cql", "diffusion_ql"] = "td3_bc"
    updates: int = 2000
    batch_size: int = 256
    updates_per_chunk: int = 500  # updates in one compiled call; logs and checkpoints come between chunks
    normalise_obs: bool = True  # standardise observations with the dataset's statistics
    td3_bc: TD3BCConfig = TD3BCConfig()
    iql: IQLConfig = IQLConfig()
    bc: BCConfig = BCConfig()
    cql: CQLConfig = CQLConfig()
    diffusion_ql: DiffusionQLConfig = DiffusionQLConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Returns in the environment and quality of synthetic trajectories."""

    episodes: int = 20  # per seed, at the end
    every: int = 0  # updates between intermediate evaluations; 0: only at the end
    intermediate_episodes: int = 5
    trajectories: int = 512  # synthetic trajectories scored
    coefficients: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)  # guidance coefficients of the sweep in the report
    sampler_steps: int = 0  # sampler steps for the scored trajectories; 0: as in training
    behaviour: str = ""  # .npz of the tanh-Gaussian actor that collected the data, to score actions under it
    confidence: float = 0.95
    max_steps: int = 0  # of an episode, where that is below the environment's limit, or it has none; 0: that limit
    processes: int = 0  # that step Gymnasium environments; 0: as many as there are usable cores. Changes no result


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """What happens to numbers that are not finite. May differ when a run is continued."""

    lost_seeds: Literal["stop", "keep"] = "stop"  # one seed has such numbers: stop its stage, or go on while others are well
    skip_updates: int = 0  # updates with such a loss or gradient that are left out per chunk; 0: the first stops the stage
    value_excess: float = 1.0  # a critic is flagged whose values are so many widths of what rewards allow outside of it
    debug_nans: bool = False  # find the operation that makes the first NaN, at several times the cost


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: dataset -> denoiser -> one agent per arm and seed -> evaluation -> report."""

    preset: Literal["none", "paper", "official", "dydiff", "diffusion_ql"] = "none"  # published values, before the file's own
    out: str = "runs/point2d"  # run directory
    seed: int = 0
    seeds: int = 4  # agents per arm and setting, trained as one vmapped program
    sweep: tuple[str, ...] = ()  # settings in the same program: names and values in turn, such as agent.alpha 1,2.5,4
    arms: tuple[Arm, ...] = ("real", "unguided", "guided")
    models_from: tuple[str, ...] = ()  # run directories whose trained models are used instead of training the same ones
    checkpoint_seconds: float = 60.0  # least time between checkpoints within a stage
    keep_checkpoints: int = 2  # of each stage, besides the one with the best validation loss or returns
    wandb_project: str = ""  # also log to this Weights & Biases project (extra `wandb`)
    matmul_precision: Literal["tensorfloat32", "float32"] = "tensorfloat32"  # of float32 products, on accelerators alone
    data: DataConfig = DataConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    agent: AgentConfig = AgentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
