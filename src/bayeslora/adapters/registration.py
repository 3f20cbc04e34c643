"""How PEFT learns of adapters with random modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import peft.mapping

from bayeslora.adapters.config import PeftType, RandomLoraConfig
from bayeslora.adapters.model import RandomLoraModel

Config = TypeVar("Config", bound=type[RandomLoraConfig])


def register(name: str) -> Callable[[Config], Config]:
    """Class decorator: PEFT saves and loads adapters of this config as type `name`.

    PEFT's own `register_peft_method` refuses names outside its enum.
    """

    def decorate(config: Config) -> Config:
        kind: Any = PeftType(name)
        config.registered_type = kind
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = RandomLoraModel
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = RandomLoraModel.prefix
        return config

    return decorate
