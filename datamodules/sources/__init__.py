"""Every form that rows come in, read into one."""
