"""Jobs: a store that survives a kill at any moment, results by their content, and one runner per device.

Clients (terminal, web page, HTTP, batch) need `store.Store` and `control` alone; they never wait for a runner. What a
planner decides about memory belongs between `runner.Runner.run_job` and the task: a request in, a request out.
"""
