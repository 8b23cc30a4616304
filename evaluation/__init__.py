"""J and F as the DAVIS benchmark defines them, for folders of results."""
