"""Commands that set something up: a project, completion in a shell."""
