"""Studies as TOML files: cells, scales, what is refused, and names that tell results apart."""

import dataclasses
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.needs import NEEDS, needs
from jaxpgd.experiment.precision import STATED
from jaxpgd.experiment.stages.model_source import as_trained
from jaxpgd.experiment.studies import plan
from jaxpgd.experiment.studies.cell import conditioned
from jaxpgd.experiment.studies.identity import LATER, settings_of, short_hash, slug
from jaxpgd.experiment.studies.plan import Budget, load_study, shipped
from jaxpgd.experiment.studies.results import Results
from jaxpgd.experiment.studies.store import STAGES, Store
from jaxpgd.experiment.studies.tables import merge
from jaxpgd.experiment.studies.together import groups, joined, swept
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.experiment.validation import validate

SMALL = """
title = "Small"
[base]
seeds = 2
[axes.source]
real = { arms = ["real"], "synthesis!" = {} }
guided = { arms = ["guided"] }
[axes.regime]
periodic = { synthesis.regime = "periodic" }
fifo = { synthesis.regime = "fifo" }
[scale.first.base]
agent.updates = 4000
[scale.second.axes.regime]
fifo = { synthesis.fraction = 0.5 }
[[figures]]
kind = "intervals"
hue = "source"
panels = ["regime"]
"""


SCALES = [(name, scale) for name in shipped() for scale in tomllib.loads(shipped()[name].read_text())["scale"]]


@pytest.fixture
def study_file(tmp_path: Path):
    def write(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text)
        return str(tmp_path / "mine.toml")

    return write


def test_cells_are_the_product_of_axes_and_the_first_scale_is_the_default(study_file) -> None:
    study = load_study(study_file(SMALL))
    assert (study.name, study.scale, study.title) == ("mine", "first", "Small")
    assert [tuple(cell.labels.values()) for cell in study.cells] == [
        ("real", "periodic"), ("real", "fifo"), ("guided", "periodic"), ("guided", "fifo"),
    ]  # fmt: skip
    assert all(cell.config.seeds == 2 and cell.config.agent.updates == 4000 for cell in study.cells)
    assert study.cells[3].config.synthesis.regime == "fifo" and study.cells[3].config.arms == ("guided",)


def test_a_scale_adds_to_axes_and_overrides_come_last(study_file) -> None:
    study = load_study(study_file(SMALL), "second", only={"source": ("guided",)}, overrides={"seeds": 5})
    assert [cell.labels["source"] for cell in study.cells] == ["guided", "guided"]
    assert [cell.config.synthesis.fraction for cell in study.cells] == [0.1, 0.5]
    assert [cell.config.synthesis.regime for cell in study.cells] == ["periodic", "fifo"]
    assert all(cell.config.seeds == 5 and cell.config.agent.updates == 2000 for cell in study.cells)


def test_later_axes_win_so_that_cells_without_a_meaning_are_one(study_file) -> None:
    text = SMALL.replace("[axes.source]", "[axes.late]").replace("[scale.second.axes.regime]", "[scale.second.axes.late]")
    order = text.index("[axes.late]"), text.index("[axes.regime]"), text.index("[scale.first.base]")
    turned = text[: order[0]] + text[order[1] : order[2]] + text[order[0] : order[1]] + text[order[2] :]
    study = load_study(study_file(turned.split("[scale.first.base]")[0]))
    keys = {(cell.labels["late"], cell.labels["regime"]): cell.key for cell in study.cells}
    assert keys["real", "periodic"] == keys["real", "fifo"]
    assert keys["guided", "periodic"] != keys["guided", "fifo"]


def test_the_key_is_of_what_changes_results_alone(study_file) -> None:
    cell = load_study(study_file(SMALL)).cells[0]
    moved = dataclasses.replace(
        cell, config=dataclasses.replace(cell.config, out="elsewhere", checkpoint_seconds=1.0), labels={}
    )
    divided = dataclasses.replace(
        cell, config=dataclasses.replace(cell.config, evaluation=dataclasses.replace(cell.config.evaluation, processes=3))
    )
    other = dataclasses.replace(cell, config=dataclasses.replace(cell.config, seed=1))
    measured = dataclasses.replace(cell, measure=dataclasses.replace(cell.measure, trajectories=7))
    assert moved.key == divided.key == cell.key and len({cell.key, other.key, measured.key}) == 3
    assert cell.name == f"returns-point2d-{cell.key}"


def test_settings_of_health_that_change_results_are_in_the_key(study_file, tmp_path: Path) -> None:
    path, store = study_file(SMALL), Store(tmp_path)
    usual, again, skipping = (
        load_study(path, overrides={"health": health}).cells[-1] for health in ({}, {"value_excess": 9.0}, {"skip_updates": 5})
    )
    assert usual.key == again.key != skipping.key
    models = [store.run_of_model(cell.config, "denoiser").out for cell in (usual, again, skipping)]
    assert models[0] == models[1] != models[2]


def test_the_loop_is_in_the_keys_of_what_it_changes(study_file) -> None:
    """Anchored states were iterated otherwise before there was such a setting: what was measured then is not read again."""
    text = SMALL.replace("[axes.regime]", '[axes.loop]\nclosed = {}\nopen = { synthesis.dydiff.loop = "open" }\n[axes.regime]')
    text = text.replace(
        'guided = { arms = ["guided"] }', 'dydiff = { arms = ["dydiff"], synthesis.dydiff.conditioning = "KIND" }'
    )
    anchored = load_study(study_file(text.replace("KIND", "anchored"))).cells
    keys = {cell.labels["loop"]: cell.key for cell in anchored if cell.labels["source"] == "dydiff"}
    assert keys["closed"] != keys["open"]
    assert all(
        "loop" in settings_of(cell.config)["synthesis"]["dydiff"] for cell in anchored if cell.labels["source"] == "dydiff"
    )
    published = load_study(study_file(SMALL.replace('"guided"', '"dydiff"'))).cells[-1]
    assert "loop" not in settings_of(published.config)["synthesis"]["dydiff"]
    rollouts = load_study("rollout-policy", "point2d", overrides={"synthesis": {"dydiff": {"loop": "open"}}}).cells[0]
    assert rollouts.key != load_study("rollout-policy", "point2d").cells[0].key  # though its config is published


def test_later_settings_are_in_the_keys_where_they_are_not_the_defaults(study_file, tmp_path: Path) -> None:
    """Cells, models and target agents that were measured before there were these settings keep their names."""
    path, store = study_file(SMALL), Store(tmp_path)
    usual, exact = (load_study(path, overrides=own).cells[-1] for own in ({}, {"matmul_precision": "float32"}))
    assert STATED not in settings_of(usual.config) and settings_of(exact.config)[STATED] == "float32"
    assert usual.key != exact.key
    for stage in ("denoiser", "world-model", "state-denoiser"):
        runs = [store.run_of_model(cell.config, stage) for cell in (usual, exact)]
        assert [each.matmul_precision for each in runs] == ["tensorfloat32", "float32"] and runs[0].out != runs[1].out
    config = usual.config
    kept = lambda section: {n: v for n, v in asdict(getattr(config, section)).items() if f"{section}.{n}" not in LATER}
    network, data = kept("denoiser"), kept("data")
    names = {"seed": config.seed, "data": data, "denoiser": network}
    assert store.run_of_model(config, "denoiser").out.endswith(f"denoiser-point2d-{short_hash(names)}")
    other = load_study(path, overrides={"denoiser": {"convolution": "primitive"}}).cells[-1]
    assert other.key != usual.key and settings_of(other.config)["denoiser"]["convolution"] == "primitive"
    assert store.run_of_model(other.config, "denoiser").out.endswith(
        short_hash(names | {"denoiser": asdict(other.config.denoiser)})
    )
    clipped = load_study(path, overrides={"data": {"clip_actions": True}}).cells[-1]
    assert clipped.key != usual.key and settings_of(clipped.config)["data"]["clip_actions"] is True
    for stage in ("denoiser", "world-model", "state-denoiser"):
        run = store.run_of_model(clipped.config, stage)
        assert run.data.clip_actions and run.out != store.run_of_model(usual.config, stage).out


ROLLOUTS = """
title = "Rollouts"
[axes.what]
agents = { measure.kind = "returns", arms = ["real"] }
rollouts = { measure.kind = "rollouts", arms = ["world_model"] }
[[figures]]
kind = "steps"
value = "state_error"
hue = "method"
[[tables]]
value = "return"
rows = ["what"]
[[comparisons]]
axis = "method"
pairs = ["world model, mean", "world model, sampled"]
value = "return_error"
"""


def test_methods_of_rollouts_are_an_axis_and_parts_keep_the_values_of_the_whole(study_file) -> None:
    path = study_file(ROLLOUTS.replace('measure.kind = "returns", ', ""))  # which is the default
    for only in (None, {"what": ("agents",)}, {"what": ("rollouts",)}):
        study = load_study(path, only=only)
        assert study.comparisons[0].axis == study.figures[0].hue == "method" and study.tables[0].value == "return"


def test_settings_that_axes_vary_are_not_overridden(study_file) -> None:
    with pytest.raises(InputError, match=r"--synthesis.regime = 'oneoff': expected a setting that no axis"):
        load_study(study_file(SMALL), overrides={"synthesis": {"regime": "oneoff"}})
    with pytest.raises(InputError, match="--seed = 5: expected a setting that no axis"):
        load_study("pgd-likelihood", overrides={"seed": 5})
    stronger = {"agent": {"rebrac": {"actor_penalty": 0.1}}}  # of the labels that are kept none has its own
    study = load_study("agents", only={"dataset": ("hopper medium",), "agent": ("ReBRAC",)}, overrides=stronger)
    assert [cell.config.agent.rebrac.actor_penalty for cell in study.cells] == [0.1]
    with pytest.raises(InputError, match=r"--agent.rebrac.actor_penalty = 0.1: expected a setting that no axis"):
        load_study("agents", only={"agent": ("ReBRAC",)}, overrides=stronger)


def test_what_has_no_effect_on_a_cell_is_not_in_its_key() -> None:
    """Agents on real data, and other agents, are not trained again for settings that they do not have."""
    keys = lambda name, only, **overrides: {
        next(reversed(cell.labels.values())): cell.key for cell in load_study(name, "own", only=only, overrides=overrides).cells
    }
    only = {"percent": ("10",), "agent": ("IQL",), "source": ("real", "guided")}
    plain = keys("data-fraction", only)
    changed = keys("data-fraction", only, denoiser={"steps": 4000}, synthesis={"interval": 20000})
    assert changed["real"] == plain["real"] and changed["guided"] != plain["guided"]
    assert keys("data-fraction", only, agent={"updates": 20000})["real"] != plain["real"]
    only = {"agent": ("TD3+BC", "ReBRAC")}
    plain, changed = keys("agents", only), keys("agents", only, agent={"rebrac": {"actor_penalty": 0.1}})
    assert changed["TD3+BC"] == plain["TD3+BC"] and changed["ReBRAC"] != plain["ReBRAC"]
    with pytest.raises(InputError, match=r"--agent.rebrac.actor_penalty = 0.1: expected its default"):
        keys("agents", {"agent": ("TD3+BC", "BC")}, agent={"rebrac": {"actor_penalty": 0.1}})


def test_a_part_of_a_study_has_a_folder_of_its_own(study_file) -> None:
    path = study_file(SMALL)
    whole, part, other = (
        load_study(path),
        load_study(path, only={"source": ("real",)}),
        load_study(path, overrides={"seeds": 3}),
    )
    assert whole.part == "" and len({part.part, other.part, ""}) == 3


def test_a_target_is_trained_on_the_cells_data_once(study_file) -> None:
    text = SMALL.replace("[base]", "[measure]\nkind = 'trajectories'\n[target]\nagent.kind = 'bc'\n[base]\ndata.episodes = 7")
    text = text.replace('hue = "source"', 'hue = "source"\nvalue = "log_likelihood"')
    target = load_study(study_file(text)).cells[0].target.config
    assert target is not None and (target.data.episodes, target.seeds, target.agent.kind) == (7, 1, "bc")


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(*each, marks=[pytest.mark.slow] * (each in (("data-fraction", "full"), ("data-fraction", "cpu"))))
        for each in SCALES
    ],
)
def test_every_model_of_every_cell_has_a_run_of_its_own(name: str, scale: str, tmp_path: Path) -> None:
    store, seen = Store(tmp_path), set[str]()
    for cell in load_study(name, scale).cells:
        runs = {stage: store.run_of_model(cell.config, stage) for stage in NEEDS if needs(cell.config, stage)}
        for stage, run in runs.items():
            if run.out not in seen:  # else the run of another cell
                validate(run)
                seen.add(run.out)
            assert needs(run, stage) and run.data.name == cell.config.data.name
            beside = ("world-model", "behaviour") if stage == "state-denoiser" and needs(cell.config, "behaviour") else ()
            assert run.models_from == tuple(runs[other].out for other in beside)


def test_a_model_of_a_store_is_found_again_when_the_default_of_what_it_does_not_use_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Config] = []
    monkeypatch.setitem(STAGES, "world-model", lambda run, prepared: trained.append(run.config))
    store, config = Store(tmp_path), load_config(None, {"arms": ["world_model"], "data": {"episodes": 4}})
    monkeypatch.setattr(store, "prepared", lambda config: None)
    own = store.run_of_model(config, "world-model")
    of_before = dataclasses.replace(own, guidance=dataclasses.replace(own.guidance, coefficient=7.0))
    for run in (of_before, own):
        store._trained(run, "world-model")
    assert trained == [of_before, of_before]


def test_conditionings_of_rollouts_are_denoisers_of_their_own(study_file, tmp_path: Path) -> None:
    text = ROLLOUTS.replace("[axes.what]", "[measure]\nconditionings = ['published', 'anchored']\n[axes.what]")
    text = text.replace('arms = ["world_model"]', 'arms = ["dydiff"]')
    cell, store = load_study(study_file(text), only={"what": ("rollouts",)}).cells[0], Store(tmp_path)
    published, anchored = (conditioned(cell.config, kind) for kind in cell.measure.conditionings)
    runs = {stage: store.run_of_model(anchored, stage) for stage in NEEDS if needs(anchored, stage)}
    assert list(runs) == ["world-model", "behaviour", "state-denoiser"] and not needs(published, "behaviour")
    assert runs["state-denoiser"].models_from == (runs["world-model"].out, runs["behaviour"].out)
    assert runs["state-denoiser"].out != store.run_of_model(published, "state-denoiser").out
    faster = dataclasses.replace(anchored, world_model=dataclasses.replace(anchored.world_model, lr=1.0))
    assert store.run_of_model(faster, "behaviour").out == runs["behaviour"].out
    assert store.run_of_model(faster, "state-denoiser").out != runs["state-denoiser"].out  # which has another ensemble
    for wrong, message in (
        (text.replace('arms = ["dydiff"]', 'arms = ["world_model"]'), "nothing where arms lacks dydiff"),
        (text.replace("'anchored'", "'published'"), "none twice"),
        (text.replace('arms = ["dydiff"]', 'arms = ["dydiff"], data.normalisation = "limits"'), "'standard' where synth"),
    ):
        with pytest.raises(InputError, match=message):
            load_study(study_file(wrong), only={"what": ("rollouts",)})


def test_models_are_named_by_what_decides_them(tmp_path: Path) -> None:
    store, config = Store(tmp_path), load_config(None, {"arms": ["dydiff"], "sampler": {"kind": "heun"}})
    replace = dataclasses.replace
    churned = replace(config.synthesis, dydiff=replace(config.synthesis.dydiff, conditions="churned"))
    noised = replace(config.synthesis, dydiff=replace(config.synthesis.dydiff, conditions="noised"))
    faster = replace(config.world_model, lr=1.0)
    same = [config, replace(config, synthesis=churned), replace(config, world_model=faster), replace(config, preset="paper")]
    assert len({store.run_of_model(c, "state-denoiser").out for c in same}) == 1
    held_out = replace(config, data=replace(config.data, validation_fraction=0.2))
    run, usual = (store.run_of_model(c, "world-model") for c in (held_out, config))
    assert run.data.validation_fraction == 0.2 and run.out != usual.out
    single = replace(config, world_model=replace(config.world_model, holdout_by="transitions"))
    assert settings_of(single) != settings_of(config)
    real = [settings_of(replace(c, arms=("real",))) for c in (single, config)]
    assert real[0] == real[1] and "holdout_by" not in real[0]["world_model"]  # cells of before keep their names
    scaled = replace(config.synthesis, dydiff=replace(config.synthesis.dydiff, scaled_conditions=True))
    for changed in (noised, scaled):
        assert (
            store.run_of_model(replace(config, synthesis=changed), "state-denoiser").out
            != store.run_of_model(config, "state-denoiser").out
        )
    assert store.run_of_model(replace(config, synthesis=scaled), "state-denoiser").synthesis.dydiff.scaled_conditions
    assert store.run_of_model(same[2], "world-model").out != store.run_of_model(config, "world-model").out
    wide = replace(config, data=replace(config.data, window=8))
    assert store.run_of_model(wide, "world-model") == store.run_of_model(config, "world-model")
    assert store.run_of_model(wide, "state-denoiser").out != store.run_of_model(config, "state-denoiser").out


def test_merge_goes_deep_and_an_exclamation_mark_replaces() -> None:
    below = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    assert merge(below, {"a": {"y": {"w": 4}}}) == {"a": {"x": 1, "y": {"z": 2, "w": 4}}, "b": 3}
    assert merge(below, {"a!": {"w": 5}}) == {"a": {"w": 5}, "b": 3}
    assert below == {"a": {"x": 1, "y": {"z": 2}}, "b": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seed = 'x'"), r"real, periodic: .*seed = 'x': expected an integer"),
        (("seeds = 2", "sedes = 2"), r"unknown key 'sedes'. Did you mean 'seeds'"),
        (('hue = "source"', 'hue = "colour"'), r"figure 1 = 'colour': expected an axis: source, regime"),
        (('kind = "intervals"', 'kind = "pie"'), r"kind = 'pie': expected one of"),
        (('title = "Small"', ""), r"title = None: expected to be given"),
        (("[base]", "[basis]"), r"key = 'basis': expected one of title"),
        (("[base]", "[measure]\ntrajectories = 1\n[base]"), r"measure.trajectories = 1: expected at least 2"),
        (("[base]", "[target]\nactor = 'a.npz'\nseed = 1\n[base]"), r"target = .*: expected either actor or settings"),
        (("[base]", "[target]\nsede = 1\n[base]"), r"unknown key 'target.sede'"),
        (("[axes.source]", "[axes.source\n"), r"expected valid TOML"),
        (("[axes.source]", "[axes.return]"), r"axes = 'return': expected another name"),
        (("[axes.source]", "[axes.score]"), r"axes = 'score': expected another name"),
        (("[axes.source]", "[measure]\nkind = 'tilt'\n[axes.policy]"), r"axes = 'policy': expected another name"),
        (
            ("[axes.source]", "[axes.seed]\n0 = { seed = 0 }\n[axes.source]"),
            r"seeds = 2: expected 1, as the axis 'seed' repeats",
        ),
        (("seeds = 2", "evaluation.confidence = 0.9"), r"evaluation.confidence = 0.9: expected 0.95"),
        (("[base]", "[target]\nactor = 3\n[base]"), r"target.actor = 3: expected the path"),
        (('hue = "source"', 'hue = "method"'), r"figure 1 = 'method': expected an axis: source, regime"),
        (
            ('kind = "intervals"\nhue = "source"\npanels = ["regime"]', 'kind = "profile"\nhue = "source"'),
            r"figure 1: panels = \[\]: expected every axis named: regime too",
        ),
        (("seeds = 2", "models_from = ['x']"), r"models_from = .*: expected nothing"),
        (("[[figures]]", "[[comparisons]]\naxis = 'source'\npairs = ['real', 'fake']\n[[figures]]"), r"pairs = \['fake'\]"),
        (('kind = "intervals"', 'kind = "lines"\nx = "regime"'), r"x = 'regime': expected an axis whose labels are numbers"),
        (
            ('kind = "intervals"', 'kind = "power"\nx = "regime"'),
            r"figure 1: x = 'regime': expected one of length, ood_actions, return, score",
        ),
        (
            ("[[figures]]", "[[tables]]\npower = 'x'\n[[figures]]"),
            r"table 1: power = 'x': expected one of length, ood_actions, return",
        ),
        (
            ('kind = "intervals"', 'value = "retrun"'),
            r"figure 1: value = 'retrun': expected one of length, ood_actions, return, score",
        ),
        (('kind = "intervals"', 'kind = "steps"\nvalue = "length"'), r"value = 'length': expected one of ood_actions, retu"),
        (("[[figures]]", "[[tables]]\nvalue = 'persistence'\n[[figures]]"), r"table 1: value = 'persistence'"),
        (("[[figures]]", "[[comparisons]]\naxis = 'source'\nvalue = 'x'\n[[figures]]"), r"comparison 1: value = 'x'"),
        (("seeds = 2", "seeds = 2\nsweep = ['agent.alpha', '1,2']"), r"sweep = .*: expected nothing: what a study varies"),
        (("[base]", "[measure]\nkind = 'rollouts'\nlength = 3\n[base]"), r"measure.length = 3: expected at least 4"),
        (('arms = ["guided"]', 'arms = ["real", "guided"]'), r"guided, periodic: arms = .*: expected one of them"),
        (
            ("[base]", "[measure]\nkind = 'trajectories'\n[base]\nsampler.kind = 'auto'"),
            r"sampler.kind = 'auto': expected one of",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_computed(study_file, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_study(study_file(SMALL.replace(*change)))


def test_unknown_studies_scales_and_labels(study_file) -> None:
    path = study_file(SMALL)
    for arguments, message in (
        (("pgd-lamda",), "study = 'pgd-lamda': expected one of .*pgd-lambda"),
        (("none.toml",), "expected a readable TOML file"),
        ((path, "huge"), "--scale = 'huge': expected one of first, second"),
    ):
        with pytest.raises(InputError, match=message):
            load_study(*arguments)
    with pytest.raises(InputError, match=r"--only source = 'fake': expected one of real, guided"):
        load_study(path, only={"source": ("fake",)})
    with pytest.raises(InputError, match=r"--only = 'place': expected an axis: source, regime"):
        load_study(path, only={"place": ("x",)})


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_shipped_study_can_be_read(name: str, scale: str) -> None:
    study = load_study(name, scale)
    assert study.cells and study.figures and study.tables and len(study.text) > 100
    assert all(figure.title and figure.name for figure in study.figures)


def test_the_studies_of_both_papers_are_shipped() -> None:
    assert set(shipped()) == {
        "pgd-illustration", "pgd-lambda", "pgd-regimes", "pgd-likelihood", "pgd-dynamics", "pgd-returns", "dydiff-returns",
        "rollout-horizon", "rollout-policy", "pgd-accelerator", "pgd-consistency", "pgd-compute", "pgd-consistency-returns",
        "data-fraction", "agents",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "paper", "agents"),
    [
        ("pgd-returns", "pgd", {"TD3+BC": "td3_bc", "IQL": "iql"}),
        ("dydiff-returns", "dydiff", {"TD3+BC": "td3_bc", "CQL": "cql", "Diffusion-QL": "diffusion_ql"}),
    ],
)
def test_result_tables_at_full_scale_have_the_settings_of_the_shipped_configs(
    name: str, paper: str, agents: dict[str, str]
) -> None:
    configs = Path(__file__).parents[3] / "configs" / "paper"
    hopper = [cell for cell in load_study(name, "full").cells if cell.labels["dataset"].startswith("hopper")]
    cells = [cell for cell in hopper if cell.labels["source"] != "DyDiff anchored"]  # which is not published
    assert len(cells) == 3 * len(agents)
    for cell in cells:
        kind = agents[cell.labels["agent"]]
        published = load_config(configs / f"{paper}_hopper_{kind}.toml")
        assert cell.config.health.lost_seeds == "keep"  # a seed that diverges does not stop the others
        same = {"out": "", "arms": (), "health": published.health, "preset": "none"}  # "paper" of its arms, or the method's
        mine, theirs = (dataclasses.replace(c, **same) for c in (cell.config, published))  # type: ignore[arg-type]
        unused = {other: getattr(theirs.agent, other) for other in set(agents.values()) - {kind}}
        assert dataclasses.replace(mine, agent=dataclasses.replace(mine.agent, **unused)) == theirs


def test_fractions_of_data_are_cells_and_models_of_their_own(tmp_path: Path) -> None:
    store, only = Store(tmp_path), {"percent": ("5", "100"), "agent": ("TD3+BC", "IQL")}
    study = load_study("data-fraction", "own", only=only, overrides={"data": {"name": "point2d"}})
    again = load_study("data-fraction", "own", only=only, overrides={"data": {"name": "point2d", "fraction_seed": 1}})
    assert all(cell.config.data.name == "point2d" for cell in study.cells)
    for cell, other in zip(study.cells, again.cells, strict=True):
        part = cell.labels["percent"] == "5"
        assert cell.config.data.fraction == (0.05 if part else 1.0)
        assert (cell.key == other.key) is not part  # of the whole dataset nothing is drawn
        for stage in (stage for stage in NEEDS if needs(cell.config, stage)):
            run, second = (store.run_of_model(config, stage) for config in (cell.config, other.config))
            assert run.data.fraction == cell.config.data.fraction and (run.out == second.out) is not part
        target = cell.target.config
        assert target is not None and target.data.fraction == cell.config.data.fraction
    named = {(cell.labels["percent"], cell.labels["agent"], cell.labels["source"]): cell for cell in study.cells}
    for source in study.axes["source"]:
        one, two = (named["5", agent, source] for agent in ("TD3+BC", "IQL"))
        assert (one.key == two.key) is (one.measure.kind == "trajectories")
    sampled = {cell.config.synthesis for cell in study.cells if cell.config.arms != ("real",)}
    assert {own.trajectories for own in sampled} == {1024} and {own.synthetic_ratio for own in sampled} == {0.5}


def test_a_run_of_the_whole_dataset_takes_models_of_another_draw() -> None:
    whole, part = (load_config(None, {"data": {"fraction": fraction}}, unused="kept") for fraction in (1.0, 0.5))
    draw = lambda config, seed: dataclasses.replace(config, data=dataclasses.replace(config.data, fraction_seed=seed))
    assert as_trained(draw(whole, 1), "data.fraction_seed") == as_trained(whole, "data.fraction_seed") == 0
    assert as_trained(draw(part, 1), "data.fraction_seed") == 1
    assert settings_of(draw(whole, 1)) == settings_of(whole) and settings_of(draw(part, 1)) != settings_of(part)


def test_likelihood_and_dynamics_measure_the_same_cells() -> None:
    one, other = (load_study(name, "laptop") for name in ("pgd-likelihood", "pgd-dynamics"))
    assert [cell.key for cell in one.cells] == [cell.key for cell in other.cells]


def test_cells_that_differ_in_numbers_are_trained_together(study_file) -> None:
    text = """
title = "Numbers"
[base]
arms = ["real"]
[axes.alpha]
"1" = { agent.td3_bc.alpha = 1.0 }
"4" = { agent.td3_bc.alpha = 4.0 }
[axes.lr]
"a" = { agent.td3_bc.lr = 1e-3 }
"b" = { agent.td3_bc.lr = 1e-4 }
[axes.batch]
"64" = { agent.batch_size = 64 }
"32" = { agent.batch_size = 32 }
"""
    cells = load_study(study_file(text)).cells
    found = groups(cells)
    assert [len(group) for group in found] == [4, 4]
    assert {cell.config.agent.batch_size for cell in found[0]} == {64}
    config = swept(found[0])
    assert config.sweep == ("agent.lr", "0.001,0.0001", "agent.alpha", "1.0,4.0")
    assert len(read_sweep(config, "real").settings) == 4
    assert [len(group) for group in groups(cells[:-1])] == [4, 1, 1, 1]  # no full product: each alone
    assert [len(group) for group in groups([cells[0], cells[0]])] == [1]


def test_cells_that_differ_in_their_source_alone_are_one_program_where_the_study_says_so(study_file) -> None:
    text = SMALL.replace("[base]", "joint = true\n[base]").replace('"synthesis!" = {}', "synthesis.interval = 1000")
    study = load_study(study_file(text))
    assert study.joint and not load_study(study_file(SMALL)).joint
    found = groups(study.cells, joint=study.joint)
    assert [[cell.label for cell in group] for group in found] == [
        ["real, periodic", "guided, periodic"], ["real, fifo", "guided, fifo"],
    ]  # fmt: skip
    assert joined(found[1]).arms == ("real", "guided") and joined(found[1]).synthesis.regime == "fifo"
    assert [len(group) for group in groups(study.cells)] == [1, 1, 1, 1]
    with pytest.raises(InputError, match="joint = 'yes': expected true or false"):
        load_study(study_file(SMALL.replace("[base]", "joint = 'yes'\n[base]")))


@pytest.mark.parametrize("scale", ["accelerator", "rehearsal"])
def test_sources_with_and_without_a_world_model_are_one_program(scale: str) -> None:
    study = load_study("data-fraction", scale, only={"percent": ("10",)}, overrides={"data": {"name": "point2d"}})
    assert study.budget is not None and not any(needs(cell.config, "state-denoiser") for cell in study.cells)
    found = [[cell.labels["source"] for cell in group] for group in groups(study.cells, joint=study.joint) if len(group) > 1]
    assert found == 2 * [["real", "unguided", "guided", "world model"]]


def test_a_budget_has_shares(study_file) -> None:
    assert load_study(study_file(SMALL + "[budget]\nreserve = 0.5")).budget == Budget(0.4, 0.5)
    assert load_study(study_file(SMALL)).budget is None
    for value, message in (("reserve = 1.0", "budget.reserve = 1.0: expected a share"), ("share = 0.2", "share")):
        with pytest.raises(InputError, match=message):
            load_study(study_file(SMALL + "[budget]\n" + value))


def test_only_words_of_the_command_line_are_read(capsys: pytest.CaptureFixture, study_file) -> None:
    main(["study", study_file(SMALL), "--show"])
    assert capsys.readouterr().out.strip() == SMALL.strip()
    for words, message in (
        ([], "study = '': expected one of agents, data-fraction, dydiff-returns"),
        ([study_file(SMALL), "--only", "source=real", "--only", "source=guided"], "--only = 'source': expected each axis once"),
        ([study_file(SMALL), "--sweep", "agent.alpha", "1,2"], "--sweep = "),
        ([study_file(SMALL), "--scale", "none"], "--scale = 'none'"),
        ([study_file(SMALL), "--sedes", "3"], "unknown key '--sedes'. Did you mean '--seeds'"),
        ([study_file(SMALL), "--measure.samples", "3"], "option = '--measure.samples': expected a setting of all cells"),
        ([study_file(SMALL), "--only"], "--only = '': expected a value after it"),
        ([study_file(SMALL), "--only", "source"], "--only = 'source': expected AXIS=A,B"),
        ([study_file(SMALL), "--out", "--scale", "first"], "--out = '--scale': expected a value after it"),
        ([study_file(SMALL), "--only", "source=x"], "--only source = 'x'"),
        (
            [study_file(SMALL), "--show", "--scale", "laptop", "--seeds", "2"],
            "study = ['--scale', '--seeds', '2']: expected nothing beside --show",
        ),
    ):
        with pytest.raises(SystemExit) as error:
            main(["study", *words])
        assert error.value.code == 2 and message in capsys.readouterr().err
    assert slug("../data/hopper_medium-v2.hdf5") == "hopper-medium-v2"


def test_labels_of_several_axes_are_kept(study_file, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(
        "jaxpgd.experiment.studies.run.run_study", lambda study, out, **_: found.append(study) or Results(study)
    )
    main(["study", study_file(SMALL), "--only", "source=guided", "--only", "regime=periodic", "--resume"])
    assert [cell.labels for cell in found[0].cells] == [{"source": "guided", "regime": "periodic"}]


def test_a_study_with_failed_cells_ends_with_one(study_file, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(study: plan.Study, out: Path, **_: object) -> Results:
        results = Results(study)
        results.failed = {"real": "no such dataset"}
        return results

    monkeypatch.setattr("jaxpgd.experiment.studies.run.run_study", failing)
    with pytest.raises(SystemExit) as ended:
        main(["study", study_file(SMALL)])
    assert ended.value.code == 1


def test_a_scale_can_extend_another(study_file) -> None:
    scales = """
[scale.small.base]
agent = { updates = 2000, batch_size = 8 }
[scale.middle]
extends = "small"
base.agent.updates = 4000
[scale.large]
extends = "middle"
base.seeds = 5
"""
    found = load_study(study_file(SMALL + scales), "large").cells[0].config
    assert (found.agent.updates, found.agent.batch_size, found.seeds) == (4000, 8, 5)
    for table, message in (
        ('extends = "tiny"', r"scale.large.extends = 'tiny': expected one of first, second, small, middle"),
        ("extends = 3", r"scale.large.extends = 3: expected one of first, second, small, middle"),
        ('extends = "large"', r"scale.large.extends = 'large': expected a scale that does not extend this one"),
    ):
        with pytest.raises(InputError, match=message):
            load_study(study_file(SMALL + scales.replace('extends = "middle"', table)), "large")


def test_the_command_of_a_study_is_the_one_that_was_given() -> None:
    study = load_study(
        "data-fraction", "own", only={"source": ("real", "world model"), "percent": ("10",)},
        overrides={"data": {"name": "my data.hdf5"}, "agent": {"td3_bc": {"hidden": (32, 32)}}, "evaluation": {"episodes": 2}},
    )  # fmt: skip
    assert study.command == (
        "jaxpgd study data-fraction --scale own --only 'source=real,world model' --only percent=10 "
        "--data.name 'my data.hdf5' --agent.td3_bc.hidden 32 32 --evaluation.episodes 2"
    )
    assert load_study("pgd-lambda").command == "jaxpgd study pgd-lambda"
