"""The annotation page (`tools/annotate.py`): its server, and the work on one video that it shows and keeps."""
