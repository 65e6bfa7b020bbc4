"""cachewarden: a governed autopilot for fleets of Redis and Valkey caches.

This package is the library under the application: vocabulary, knob table, constitution engine and cache models.
It holds no Ray, no Redis client, no clock and no dice.
"""

from __future__ import annotations

from cachewarden.messages import AGENT_ID, CAPABILITIES, CONSTITUTIONAL_HASH

__all__ = ["AGENT_ID", "CAPABILITIES", "CONSTITUTIONAL_HASH", "__version__"]

__version__ = "0.1.0"
