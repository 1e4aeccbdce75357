"""The Ray Serve application: an ingress that speaks HTTP, and a deployment for each model."""
