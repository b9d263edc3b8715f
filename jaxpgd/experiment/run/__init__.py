"""Run directories: what reads them (`view`), what writes them (`directory`), what trains in them (`driver`).

`resolved` has what a run decides by itself, `checkpoints` and `logs` what it saves and logs, `lock` who may write,
`divergence` whether numbers are sound, `out_of_memory` and `interruption` what happens when a device or a signal stops it.
"""
