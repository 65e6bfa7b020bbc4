from __future__ import annotations

from pathlib import Path

import pytest
from serve_world import MemoryBackend, Site, proposal, standing, state


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(MemoryBackend(state(standing=standing(proposal()))), tmp_path)
