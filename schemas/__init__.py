"""The JSON Schemas of flow files and of flowrun.yaml, installed as `runner.schemas`."""
