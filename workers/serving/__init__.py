"""What runs inside a replica: a loaded model, and the batches that requests are gathered into."""
