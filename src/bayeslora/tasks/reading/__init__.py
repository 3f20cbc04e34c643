"""How tasks are found, and how rows of files, the Hub and the data package become items and splits."""
