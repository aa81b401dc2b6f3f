"""The pages: everything that can be asked for, in a browser. A client of the jobs, as the command line and the API are.

Forms are made from the requests, so a new task has its tab without a line here. The folder belongs to the extra `ui`.
"""
