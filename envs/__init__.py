"""Environments: text worlds with explicit task lists, behind the protocol of `envs.base`."""

from envs.base import Environment, PromptParts, StepResult, Task, make

__all__ = ["Environment", "PromptParts", "StepResult", "Task", "make"]
