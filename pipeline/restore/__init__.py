"""What the model restores: Sentinel-2 under clouds from Sentinel-1, and Sentinel-1 under speckle."""
