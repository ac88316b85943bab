"""The trade-off report: the records of one recipe or several -> one page, and what is concluded from them."""

KINDS = ("html", "md", "csv", "json", "png", "svg", "cdx.json")
"""Of files a report has."""
