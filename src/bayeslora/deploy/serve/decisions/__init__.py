"""Typed decisions over HTTP, in the wire formats that clients of decision models speak."""
