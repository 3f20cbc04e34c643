"""Reports on the results of a comparison (`page`), and what every study writes and draws with."""
