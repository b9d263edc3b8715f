"""Worker processes: the same bits whatever their number, what cannot be divided, failures, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxpgd.dataset import DatasetInfo, to_env_action
from jaxpgd.simulators import returns, vector, workers
from jaxpgd.simulators.environments import flatten_obs, make_environment, seeded_numpy
from jaxpgd.simulators.returns import act, evaluate
from jaxpgd.simulators.workers import EnvironmentFailure
from jaxpgd.types import Policy

TOY = '''
import os
import time

import gymnasium
import numpy as np

LOG = os.environ.get("JAXPGD_TOY_LOG")


class Walk(gymnasium.Env):
    """A noisy walk of 2 to 8 steps, which must not be stepped after its end; every instance writes its process down."""

    def __init__(self, kind=""):
        self.kind = kind
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        nested = {"z": box, "a": gymnasium.spaces.Dict({"b": box})}
        self.observation_space = gymnasium.spaces.Dict(nested) if kind == "nested" else box
        self.action_space = gymnasium.spaces.Box(np.float32([-2.0]), np.float32([4.0]))
        self.made_with = np.random.random() if kind == "draws when made" else 0.0
        if LOG:
            with open(LOG, "a") as file:
                file.write(f"{os.getpid()} ")

    def observe(self):
        return {"z": self.x, "a": {"b": -self.x}} if self.kind == "nested" else self.x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = np.random.randint if self.kind == "draws at resets" else self.np_random.integers
        self.left, self.over = int(draw(2, 9)), False
        self.x = self.np_random.normal(size=2) + self.made_with
        return self.observe(), {}

    def step(self, action):
        if self.over:
            raise AssertionError("stepped after its end")
        if self.kind == "raises" and self.left == 3:
            raise ValueError("a joint broke")
        if self.kind == "ends its process":
            os._exit(7)
        if self.kind == "endless":
            time.sleep(0.01)
        else:
            self.left -= 1
        draw = np.random.normal if self.kind == "draws at steps" else self.np_random.normal
        self.x = np.tanh(1.1 * self.x + action[0] + 0.1 * draw(size=2))
        self.over = self.left == 0
        return self.observe(), float(self.x.sum()), self.over, False, {"success": np.bool_(self.x[0] > 0.9)}
'''
KINDS = ["plain", "nested", "draws at resets", "draws at steps", "draws when made", "raises", "ends its process", "endless"]


def register(entry, kind: str, name: str = "Walk") -> str:
    env_id = f"jaxpgd-toys/{name}{''.join(word.title() for word in kind.split())}-v0"
    gymnasium.register(env_id, entry, max_episode_steps=100_000 if kind == "endless" else 50, kwargs={"kind": kind})
    return env_id


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """The environments of the toy module by kind; `pids()` are the processes that have made some since it was last called."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "jaxpgd_toys.py").write_text(TOY)
    log = folder / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("JAXPGD_TOY_LOG", str(log))
        ids = {kind: register("jaxpgd_toys:Walk", kind) for kind in KINDS}

        def pids() -> set[int]:
            found = {int(word) for word in log.read_text().split()} if log.exists() else set()
            log.unlink(missing_ok=True)
            return found

        yield SimpleNamespace(ids=ids, pids=pids, folder=folder)
        workers.stop_workers()


def about(env_id: str, **changes) -> DatasetInfo:
    return DatasetInfo(name="toy", source="npz", action_low=(-2.0,), action_high=(4.0,), env_id=env_id, **changes)


def linear(seeds: int, obs_dim: int = 2, action_dim: int = 1) -> Policy:
    weights = jax.random.normal(jax.random.key(5), (seeds, obs_dim, action_dim)) / 4
    return Policy(params=weights, sample_fn=lambda w, k, o: jnp.tanh(o @ w), mode_fn=lambda w, o: jnp.tanh(o @ w))


def bits(found) -> tuple[bytes, ...]:
    return tuple(np.asarray(part).tobytes() for part in (found.returns, found.lengths, found.successes))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids: set[int], seconds: float = 5.0) -> bool:
    """Whether the processes end; those of another parent are its to reap."""
    until = time.monotonic() + seconds
    running = lambda pid: alive(pid) and Path(f"/proc/{pid}/stat").read_text().split(") ")[-1][0] != "Z"
    while time.monotonic() < until and any(map(running, pids)):
        time.sleep(0.02)
    return not any(map(running, pids))


def serial(key, policy: Policy, info: DatasetInfo, episodes: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths [N] by Gymnasium's own vector environment, whose environments go on after a reset."""
    count = policy.params.shape[0] * episodes
    seeds = np.asarray(jax.random.randint(key, (count,), 0, 2**31 - 1)).tolist()
    envs = SyncVectorEnv([lambda: make_environment(info)] * count, autoreset_mode=AutoresetMode.NEXT_STEP)
    total, lengths, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    with seeded_numpy(seeds[0]):
        obs, _ = envs.reset(seed=seeds)
        for _ in range(horizon):
            action = np.asarray(act(policy, flatten_obs(info, obs).reshape(len(policy.params), episodes, -1)))
            scaled = to_env_action(info, action.reshape(count, -1)).astype(envs.action_space.dtype)
            obs, reward, terminated, truncated, _ = envs.step(scaled)
            total += np.where(running, reward, 0.0)
            lengths += running
            running &= ~(terminated | truncated)
    envs.close()
    return total, lengths


@pytest.mark.parametrize("kind", ["plain", "nested", "draws at resets"])
def test_any_number_of_processes_gives_the_bits_of_serial_evaluation(toy, kind):
    info = about(toy.ids[kind], **({"obs_keys": ("a/b", "z"), "obs_sizes": (2, 2)} if kind == "nested" else {}))
    policy, key = linear(3, 4 if kind == "nested" else 2), jax.random.key(1)
    total, lengths = serial(key, policy, info, 3, 12)
    toy.pids()
    found = {}
    for processes in (1, 2, 4):
        found[processes] = evaluate(key, policy, info, episodes=3, horizon=12, processes=processes)
        assert len(toy.pids()) == processes
    assert bits(found[1]) == bits(found[2]) == bits(found[4])
    assert found[1].returns.tobytes() == total.tobytes() and found[1].lengths.tobytes() == lengths.tobytes()
    assert len(np.unique(lengths)) > 3 and 0 < found[1].successes.sum() < 9


def test_hopper_gives_the_bits_of_serial_evaluation():
    pytest.importorskip("mujoco", reason="the extra `mujoco` is not installed")
    info = DatasetInfo("toy", "npz", (-1.0,) * 3, (1.0,) * 3, "Hopper-v5")
    policy, key = linear(2, 11, 3), jax.random.key(2)
    total, lengths = serial(key, policy, info, 4, 60)
    found = evaluate(key, policy, info, episodes=4, horizon=60, processes=2)
    assert found.returns.tobytes() == total.tobytes() and found.lengths.tobytes() == lengths.tobytes()
    assert lengths.min() < lengths.max()  # some have ended before


@pytest.mark.parametrize("kind", ["draws at steps", "draws when made"])
def test_what_the_order_of_environments_decides_is_left_to_one_process(toy, kind):
    info, found = about(toy.ids[kind]), []
    for processes in (1, 3, 3):
        toy.pids()
        np.random.seed(4)  # noqa: NPY002
        found.append(evaluate(jax.random.key(1), linear(2), info, episodes=3, processes=processes))
    assert bits(found[0]) == bits(found[1]) == bits(found[2])
    assert toy.pids() == {os.getpid()}  # the second time no worker is tried


@pytest.mark.parametrize(("processes", "kind"), [(1, "raises"), (3, "raises"), (2, "ends its process")])
def test_a_failure_names_the_environment_and_leaves_no_process(toy, processes, kind):
    words = "ValueError: a joint broke" if kind == "raises" else r"its process ended \(7\)"
    toy.pids()
    info = about(toy.ids[kind])
    with pytest.MonkeyPatch.context() as patch:
        if kind != "raises":  # here the one of this process lives on
            patch.setattr(os, "_exit", lambda code: None)
        with pytest.raises(EnvironmentFailure, match=f"environment {info.env_id} failed: {words}"):
            evaluate(jax.random.key(1), linear(2), info, episodes=4, processes=processes)
    used = toy.pids()
    assert len(used) == processes and gone(used - {os.getpid()})


def test_workers_are_kept_for_the_same_code_and_then_end(toy, monkeypatch):
    info, policy = about(toy.ids["plain"]), linear(2)
    run = lambda: (toy.pids(), evaluate(jax.random.key(1), policy, info, episodes=2, processes=3), toy.pids())[2]
    first, again = run(), run()
    assert first == again and len(first) == 3
    monkeypatch.setenv("JAXPGD_TOY", "changed")
    other = run()
    assert first & other == {os.getpid()} and gone(first - other)
    path = toy.folder / "jaxpgd_toys.py"
    before = path.stat()
    os.utime(path, (before.st_atime, before.st_mtime + 10))  # a worker might import other code than is here
    assert run() == {os.getpid()}
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    workers.stop_workers()
    assert gone(other - {os.getpid()})


class Imported(gymnasium.Env):
    """An environment of a module that imports JAX."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(np.float32([-2.0]), np.float32([4.0]))

    def __init__(self, kind: str):
        self.kind = kind

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2), {}

    def step(self, action):
        return self.np_random.normal(size=2), float(action[0]), bool(self.np_random.random() < 0.2), False, {}


@pytest.mark.parametrize("entry", [lambda kind: Imported(kind), Imported], ids=["lambda", "class"])
def test_what_a_worker_cannot_make_is_stepped_here(entry):
    info = about(register(entry, "plain", "Interactive"))
    found = [evaluate(jax.random.key(1), linear(2), info, episodes=4, processes=n) for n in (1, 3)]
    assert bits(found[0]) == bits(found[1]) and len(np.unique(found[0].lengths)) > 1


SCRIPT = """
import sys
print("the program runs")
import gymnasium, jax, jax.numpy as jnp, jaxpgd, jaxpgd_toys
from jaxpgd.dataset import DatasetInfo

class Own(jaxpgd_toys.Walk):
    pass

policy = jaxpgd.Policy(params=jnp.ones((2, 2)), sample_fn=lambda w, k, o: o @ w, mode_fn=lambda w, o: (o @ w)[None])
for name, entry in (("Own", Own), ("Walk", "jaxpgd_toys:Walk")):
    gymnasium.register(f"Script{name}-v0", entry, max_episode_steps=100_000, kwargs={"kind": sys.argv[1]})
    info = DatasetInfo("toy", "npz", (-2.0,), (4.0,), f"Script{name}-v0")
    if name == "Walk" or sys.argv[1] != "endless":
        print(jaxpgd.evaluate(jax.random.key(1), policy, info, episodes=4, processes=3).returns.tolist())
"""


def script(toy, kind: str) -> subprocess.Popen:
    (toy.folder / "script.py").write_text(SCRIPT)
    toy.pids()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(toy.folder), str(Path(workers.__file__).parents[2])])}
    return subprocess.Popen(
        [sys.executable, str(toy.folder / "script.py"), kind], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def test_a_program_without_a_guard_runs_once_and_its_own_classes_work(toy):
    process = script(toy, "plain")
    output, errors = process.communicate(timeout=120)
    first, *found = output.splitlines()
    assert (first, process.returncode, errors) == ("the program runs", 0, "")
    assert len(found) == 2 and found[0] == found[1]
    used = toy.pids()
    assert len(used) == 3 and gone(used)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(toy, sign):
    process, log = script(toy, "endless"), toy.folder / "log"
    while process.poll() is None and not (log.exists() and len(set(log.read_text().split())) == 3):
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, sign)
    _, errors = process.communicate(timeout=30)
    used = toy.pids()
    assert len(used) == 3 and gone(used)
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt\n") == (1 if sign == signal.SIGINT else 0)


def test_how_many_processes_step(monkeypatch):
    monkeypatch.setattr(vector, "usable_cores", lambda: 8)
    long, short = vector.WORTH, vector.WORTH // 100
    assert vector.processes_for(50, long, 0) == 8  # every core
    assert vector.processes_for(7, long, 0) == 3  # at least two environments each
    assert vector.processes_for(1, long, 0) == vector.processes_for(99, short, 0) == 1
    assert vector.processes_for(99, short, 3) == 3 and vector.processes_for(2, short, 3) == 2


def test_a_policy_acts_on_the_host_where_jax_has_a_cpu_backend(monkeypatch):
    policy = linear(2)
    assert returns._on_host(policy) is policy
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    moved = returns._on_host(policy)
    assert moved.params.committed and {device.platform for device in moved.params.devices()} == {"cpu"}

    def missing(backend):
        raise RuntimeError("unknown backend")

    monkeypatch.setattr(jax, "local_devices", missing)
    assert returns._on_host(policy) is policy
