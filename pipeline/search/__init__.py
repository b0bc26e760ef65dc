"""Which samples are most like one: nearest neighbours in a store of `pipeline.embed`, and a picture of them."""
