"""Files, networks and servers that tests share."""
