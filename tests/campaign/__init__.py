"""A reliability campaign: bad inputs, kills and full disks against the real commands, counted (`make campaign`)."""
