"""Azure Machine Learning's inference server."""
