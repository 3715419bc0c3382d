"""Devices, links, clusters, models, profiles and prices: data only, each with its source."""
