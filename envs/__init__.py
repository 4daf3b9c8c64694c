"""The task families, registered with Gymnasium. Importing this package imports none of them."""

import gymnasium

if __name__ != "opdlight.envs":  # a second copy would have classes of its own
    raise ImportError(f"Import these environments as opdlight.envs, not as {__name__}.")

for _name, _entry_point in {
    "ReasoningGym": "opdlight.envs.reasoning_gym:ReasoningGymEnv",
    "MathDataset": "opdlight.envs.math_dataset:MathDatasetEnv",
    "ToyText": "opdlight.envs.toy_text:ToyTextEnv",
    "ALFWorld": "opdlight.envs.alfworld.env:ALFWorldEnv",
    "TextWorld": "opdlight.envs.textworld.env:TextWorldEnv",
    "MiniGrid": "opdlight.envs.minigrid_env:MiniGridEnv",
    "WebShop": "opdlight.envs.webshop.env:WebShopEnv",
    "OpenEnv": "opdlight.envs.openenv.env:OpenEnvEnv",
}.items():
    gymnasium.register(
        id=f"opdlight/{_name}-v0",
        entry_point=_entry_point,
        disable_env_checker=True,  # conformance.py checks; at run time the checker would only slow every step
        order_enforce=False,
    )
