"""The task families, registered with Gymnasium. Importing this package imports none of them."""

import gymnasium

for _name, _entry_point in {
    "ReasoningGym": "envs.reasoning_gym:ReasoningGymEnv",
    "MathDataset": "envs.math_dataset:MathDatasetEnv",
    "ToyText": "envs.toy_text:ToyTextEnv",
    "ALFWorld": "envs.alfworld.env:ALFWorldEnv",
}.items():
    gymnasium.register(
        id=f"opdlight/{_name}-v0",
        entry_point=_entry_point,
        disable_env_checker=True,  # conformance.py checks; at run time the checker would only slow every step
        order_enforce=False,
    )
