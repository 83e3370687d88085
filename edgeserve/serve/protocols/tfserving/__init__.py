"""TF Serving's REST API and KServe v1."""
