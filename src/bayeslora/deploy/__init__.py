"""Where adapters go: other programs' formats, HTTP, the Hub, lm-evaluation-harness."""
