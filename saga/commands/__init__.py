"""The subcommands of `saga`: arguments in, tables or JSON out; the work is done elsewhere."""
