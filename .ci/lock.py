"""Print the exact versions of a pip installation report (read from standard input), one `name==version` per line.

Local version suffixes (+cu126, +cpu) are dropped, so that the lock fits every build of a release.
"""

import json
import sys

HEADER = "# Exact versions the tests run with, used as pip constraints. Written by `make lock`; do not edit."
report = json.load(sys.stdin)
found = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in report["install"]}
pins = [f"{name}=={version.split('+')[0]}" for name, version in sorted(found.items()) if name != "semiseg"]
print("\n".join([HEADER, *pins]))
