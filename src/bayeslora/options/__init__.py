"""What options may hold: ranges, plain data, known classes, and the parser of command lines and files."""
