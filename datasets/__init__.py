"""Training clips and evaluation videos: from files to the tensors that the model and the losses take."""
