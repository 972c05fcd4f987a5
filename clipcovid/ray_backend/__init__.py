"""Ray stands only here: the cluster, Ray Data, Ray Train, Ray Tune."""
