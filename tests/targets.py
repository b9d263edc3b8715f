"""What target networks are after an update."""

import chex
import jax


def check_targets_moved(state, new, rate):
    """Fail unless both target networks of `new` are those of `state`, moved by `rate` towards the networks of `new`."""
    for old, online, target in (
        (state.target_actor, new.actor, new.target_actor),
        (state.target_critic, new.critic, new.target_critic),
    ):
        expected = jax.tree.map(lambda t, o: (1.0 - rate) * t + rate * o, old, online)
        chex.assert_trees_all_close(target, expected, rtol=1e-7, atol=1e-6)
