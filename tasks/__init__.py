"""How a stage is spread over a cluster: Ray, object storage, restarts."""
