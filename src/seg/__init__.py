"""Organ segmentation by two sub-networks: few labels, many scans."""
