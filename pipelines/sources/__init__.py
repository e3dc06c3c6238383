"""Where images come from: each kind of data set behind the door `pipelines.source.Source`."""
