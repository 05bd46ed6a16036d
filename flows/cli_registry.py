"""`bagger register`: sealed rounds into a registry that a team shares."""

from flows.console import command_group

app = command_group()
