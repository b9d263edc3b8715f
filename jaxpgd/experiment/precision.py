"""Float32 everywhere, and at which precision its products are taken on accelerators: a setting of the run, stated in its
compiled programs."""

import jax

STATED = "matmul_precision"  # the setting's name, and that of its line among versions


def single_precision() -> None:
    """Have this process make float32 arrays by default, whatever JAX_ENABLE_X64 says.

    Functions keep to float32 by themselves where double precision is the default, but draw other numbers there (whole numbers
    are made of twice the bits): a command's results, and the runs that it resumes, are not to depend on that.
    """
    jax.config.update("jax_enable_x64", False)


def precision_of(setting: str) -> str:
    """What the setting comes to here: products on CPU are float32, whatever it says."""
    return "float32" if jax.default_backend() == "cpu" else setting


def set_precision(setting: str) -> None:
    """Have every float32 product and convolution that is compiled from now on carry the precision.

    On CPU nothing is set: programs, and the keys under which compiled ones are kept, stay as they are.
    """
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", setting)
