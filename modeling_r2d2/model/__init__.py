"""What travels to the Hub with the weights, and nothing else: configurations, networks, losses, processors, pipelines.

Files lie flat and import only libraries and `from .sibling`: transformers copies a class's file, and the siblings that
it imports, beside the weights (`trust_remote_code`).
"""
