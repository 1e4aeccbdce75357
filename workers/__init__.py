"""What runs inside Ray actors and tasks: readers, the encode worker, the ledger, resources."""
