"""`kill -9` at every write and at random moments of every command that writes: `python -m tests.kill.run --minutes M`.

`run.py` is the driver, read it first; `warm.py` forks the processes that it runs, `commands.py` lists the commands with
the project that each starts from, `writes.py` counts a process's writes, stops it before each or kills it at the nth,
`documents.py` keeps the database, `state.py` compares what two projects hold.
"""
