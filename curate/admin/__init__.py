"""Administration of a project: set-up, status, health check, backup and restore, removal of superseded results.

Each file is one command: read the one that you need. May import all rooms of `curate` but `ops` and the doors.
"""
