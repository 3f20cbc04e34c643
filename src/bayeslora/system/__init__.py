"""Files that survive a kill, processes that share work, memory."""
