"""`bagger browse`: a local page to look at clips."""

from flows.console import command_group

app = command_group()
