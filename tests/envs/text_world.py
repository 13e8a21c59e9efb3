"""A Gymnasium environment of a user's own: texts as observations (in a `Dict`) and as actions."""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Echo(gymnasium.Env):
    """Answers what is said with it, "hush" with nothing; "bye" ends the episode, "fail" breaks it. The nth step's
    reward is n, but for the words of `REWARDS`; "tellnothing" has no info."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, continuous: bool = False) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict({"text": spaces.Text(100)})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Text(20, charset=LETTERS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, str], dict]:
        super().reset(seed=seed)
        self.steps = 0
        return {"text": f"Say something to {seed}."}, {}

    def step(self, action: str) -> tuple[dict[str, str], float, bool, bool, dict[str, Any]]:
        if action == "fail":
            raise RuntimeError("it broke")
        self.steps += 1
        done = action == "bye"
        text = "" if action == "hush" else f"{action} to you."
        info: Any = None if action == "tellnothing" else {"solved": done}
        return {"text": text}, REWARDS.get(action, float(self.steps)), done, False, info

    def render(self) -> None:
        """Draws nothing."""


class Lights(gymnasium.Env):
    """Two rows of two lights, drawn in characters; an action switches one on."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012
    observation_space = spaces.MultiBinary((2, 2))
    action_space = spaces.Discrete(4)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.lights = np.zeros((2, 2), np.int8)
        return self.lights.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.lights.flat[action] = 1
        return self.lights.copy(), float(self.lights.all()), bool(self.lights.all()), False, {}

    def render(self) -> str:
        return "\n".join("".join(map(str, row)) for row in self.lights)


LETTERS = string.ascii_letters
REWARDS: dict[str, Any] = {"unpaid": None, "unknown": float("nan"), "endless": float("inf")}

gymnasium.register("Echo-v0", f"{__name__}:Echo")
gymnasium.register("Lights-v0", f"{__name__}:Lights")
