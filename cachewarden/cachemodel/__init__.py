"""Cache models: what hit ratio another memory size, eviction policy or TTL would give, from what a live server shows.

It never talks to a server and never reads a clock; everything is a function of recorded evidence and a seed.
"""
