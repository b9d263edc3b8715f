"""At which precision float32 products are taken on accelerators: a setting of the run, stated in its compiled programs."""

import jax

STATED = "matmul_precision"  # the setting's name, and that of its line among versions


def precision_of(setting: str) -> str:
    """What the setting comes to here: products on CPU are float32, whatever it says."""
    return "float32" if jax.default_backend() == "cpu" else setting


def set_precision(setting: str) -> None:
    """Have every float32 product and convolution that is compiled from now on carry the precision.

    On CPU nothing is set: programs, and the keys under which compiled ones are kept, stay as they are.
    """
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", setting)
