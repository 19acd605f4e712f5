"""What a finished encoder knows, measured on patients that it has never seen."""
