"""A small HTTP server for one run; needs `pip install "bayeslora[serve]"`.

A request's items wait in a queue (`batching`), share forwards with those of other requests (`predictor`), and come back
as the records of `bayeslora predict` (`schemas`). `app` puts these together, `server` runs it.
"""
