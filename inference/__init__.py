"""From a video and its first masks to results on disk."""
