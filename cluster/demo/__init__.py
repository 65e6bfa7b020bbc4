"""The embedded demo fleet: real servers, real load, nothing to install and nothing left behind.

`servers` starts Valkey or Redis as child processes that cannot outlive us (`reaper`); `fleet` says which caches there
are and what is wrong with them; `driver` asks the managed and the control fleet for the very same keys (`prefill`,
`link`, `stats`); `player` plays trace files through the same driver. The demo knows nothing of the autopilot, and the
autopilot nothing of the demo.
"""
