"""The stages of a run. A file's verb says what it does, and each verb has one meaning.

- *prepare*: load and check the data of a config (`prepare`, `known_policies`).
- *build*: objects from config, data and models, and the programs that train them; pure, nothing runs (`build`,
  `model_programs`, `agent_programs`).
- *train*: run a program by the driver and write checkpoints (`train_models`, `train_agents`, with `batch_size` and
  `choose_coefficient` for what a run decides by itself).
- *load*: read what was trained from checkpoints, without the driver (`load`, with `model_source` for the run that has it).
- *measure*: numbers from trained agents and models (`evaluate_returns`, `score_synthesizers` by `score_trajectories` and
  `importance_truth`).

A stage is a function of the claimed run, the prepared data and what earlier stages returned. One that is finished only reads
its result. `commands.stage_order` runs them in order.
"""
