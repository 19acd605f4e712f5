"""Semi-supervised organ segmentation by two sub-networks, from few labelled and many unlabelled scans."""
