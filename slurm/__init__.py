"""Getting a training run onto a cluster and keeping it there. Knows no tensor."""
