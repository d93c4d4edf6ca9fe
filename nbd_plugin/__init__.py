"""Front ends: what serves a resource's volumes as NBD exports."""
