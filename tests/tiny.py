"""Settings with which examples of the documents take seconds: most of their time is compilation."""

from typing import Any

TINY: dict[str, Any] = {
    "data": {"episodes": 40, "window": 8},
    "denoiser": {"features": 8, "blocks": 1, "block": "plain", "groups": 4, "steps": 4, "validate_every": 2, "batch_size": 4},
    "sampler": {"kind": "euler", "steps": 3, "batch_size": 8},
    "guidance": {"kind": "reconstruction"},
    "synthesis": {"trajectories": 8, "interval": 4},
    "agent": {"updates": 8, "updates_per_chunk": 4, "batch_size": 16, "td3_bc": {"hidden": [8]}},
}
