"""What tests of imported data share."""

import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest


@pytest.fixture
def imitation(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Classes that pickle under imitation's names, with its attributes."""

    @dataclass(frozen=True)
    class TrajectoryWithRew:
        obs: Any
        acts: Any
        infos: Any
        terminal: bool
        rews: Any

    class PreferenceDataset:
        def __init__(self, fragments1: Any, fragments2: Any, preferences: Any) -> None:
            self.fragments1, self.fragments2, self.preferences = fragments1, fragments2, preferences
            self.max_size = None

    for package in ("imitation", "imitation.data", "imitation.algorithms"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for module, kind in (
        ("imitation.data.types", TrajectoryWithRew),
        ("imitation.algorithms.preference_comparisons", PreferenceDataset),
    ):
        kind.__module__, kind.__qualname__ = module, kind.__name__
        made = types.ModuleType(module)
        setattr(made, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, module, made)
    return types.SimpleNamespace(fragment=TrajectoryWithRew, dataset=PreferenceDataset)
