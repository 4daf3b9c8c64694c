"""WebShop: shopping by instruction in a text version of a web shop."""

from opdlight.envs.webshop.env import WebShopEnv

__all__ = ["WebShopEnv"]
