"""`bagger diff`: what changed between two states of the data."""

from flows.console import command_group

app = command_group()
