"""The playbooks, one table each: how a kind of change is carried out so that its known hazard does not happen."""
