"""Looks up known vulnerabilities of the installed packages; fails where there is one, and says what was not looked up.

A package index without advisory data skips every package, and so does a machine without a network: no failure, but no
all-clear either.
"""

import importlib.metadata
import json
import subprocess
import sys

COMMAND = ["-m", "pip_audit", "--local", "--skip-editable", "--format", "json", "--progress-spinner", "off"]


def main() -> int:
    """Exit status."""
    done = subprocess.run([sys.executable, *COMMAND], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:]
        if not any(word in line for line in last for word in ("onnect", "network")):
            print(done.stderr)
            return 1
        packages = [{"name": each.name, "skip_reason": last[0]} for each in importlib.metadata.distributions()]
    audited = [package for package in packages if "skip_reason" not in package]
    for package in audited:
        for each in package["vulns"]:
            print(
                f"{package['name']} {package['version']}: {each['id']}, fixed in {each['fix_versions'] or 'no version'}"
            )
    found = sum(len(package["vulns"]) for package in audited)
    outcome = f"{found} known vulnerabilities" if audited else "no advisory service reached"
    print(f"{len(audited)} of {len(packages)} packages audited: {outcome}")
    if audited and len(audited) < len(packages):
        print("not audited:", ", ".join(package["name"] for package in packages if "skip_reason" in package))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
