"""How a job runs: specs, the runner, and the engines on Ray Data and plain Ray.

Nothing is imported here: a process that needs one module of it, such as a job's coordinator,
shouldn't wait for all of them.
"""
