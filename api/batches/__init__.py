"""Batches: validating files of requests, running their lines, keeping what they answered. Any replica runs any."""
