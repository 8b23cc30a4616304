"""Questions about accuracy, answered on labelled videos."""
