"""What stands alone: devices, threads, moments, and solves in batches by the native core."""
