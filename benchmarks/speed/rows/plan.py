"""All rows, most important first."""

from benchmarks.speed.rows.agents import AGENTS, agent_row, official_agent
from benchmarks.speed.rows.base import Row, Sizes
from benchmarks.speed.rows.denoiser import CONVOLUTIONS, official_training, training_row
from benchmarks.speed.rows.peaks import peak_rows
from benchmarks.speed.rows.sampling import official_sampling, refresh_row, sampling_row


def plan(sizes: Sizes) -> list[list[Row]]:
    """Groups of rows, most important first; the programs of a group are compiled together."""
    small, large = sizes.features
    few, many = sizes.batches
    one, more = sizes.seeds[0], sizes.seeds[-2]
    aims = [
        training_row(sizes, large, many, "bfloat16"), agent_row(sizes, "td3_bc", one), agent_row(sizes, "td3_bc", more),
        refresh_row(sizes, "unguided"), refresh_row(sizes, "moment"),
    ]  # fmt: skip
    official = [
        official_training(sizes, large, many), official_agent(sizes, "td3_bc"), official_sampling(sizes, small, False),
        official_sampling(sizes, small, True), training_row(sizes, small, few, "float32"), official_training(sizes, small, few),
    ]  # fmt: skip
    # a group of its own, because cuDNN may take long to choose a convolution
    primitive = [training_row(sizes, large, many, "bfloat16", convolution="primitive"),
                 training_row(sizes, small, few, "float32", convolution="primitive")] if CONVOLUTIONS else []  # fmt: skip
    training = [
        training_row(sizes, features, batch, compute)
        for features in (large, small) for batch in (many, few) for compute in ("bfloat16", "float32")
        if (features, batch, compute) not in {(large, many, "bfloat16"), (small, few, "float32")}
    ]  # fmt: skip
    draws = lambda features: [
        sampling_row(sizes, features, steps, guidance)
        for guidance in ("unguided", "moment", "reconstruction", "published") for steps in (12, 32, 24)
    ]  # fmt: skip
    seeds = [(name, n) for name in AGENTS for n in sizes.seeds if name != "td3_bc" or n not in (one, more)]
    updates = [agent_row(sizes, *pair) for pair in seeds] + [agent_row(sizes, name, more, "float32") for name in AGENTS]
    others = [official_agent(sizes, "iql"), official_training(sizes, large, few), official_training(sizes, small, many),
              official_sampling(sizes, large, False), official_sampling(sizes, large, True)]  # fmt: skip
    first, second = draws(large), draws(small)
    return [
        peak_rows(sizes),
        aims,
        official,
        primitive,
        updates,
        first[:6],
        training,
        second[:6],
        others,
        first[6:],
        second[6:],
    ]
