"""Studies made of many runs, one folder each: what is compared under which protocol, and what it writes."""
