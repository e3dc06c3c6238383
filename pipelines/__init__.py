"""Files on disk -> batches on the device: source, order, plan, executor, tail."""
