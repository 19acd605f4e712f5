"""Information in a finished encoder, measured on patients that it was not trained on."""
