"""What the commands of `cai.cli` do, one file per family of commands; imported when a command runs."""
