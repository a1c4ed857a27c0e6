"""The command line: one file a sub-command; each has `main(words)`."""
