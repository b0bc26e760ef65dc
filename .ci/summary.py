"""Reads pytest's JUnit file: says how many tests ran, and fails when too few did."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ALLOWED_SKIPS = ["needs a GPU"]
# Some need a torchvision built for the very torch that is installed, the others bring dozens of packages that nothing
# else here needs. Where they are installed, their tests run.
OPTIONAL = ["timm", "terratorch", "torchgeo", "wandb", "mlflow"]
ALLOWED_SKIPS += [f"needs the optional package {name}" for name in OPTIONAL]
# Where the machine has namespaces, the tests in them must run.
NAMESPACES = {"--mount": "needs a mount namespace", "--net": "needs network namespaces"}
for option, reason in NAMESPACES.items():
    if subprocess.run(["unshare", option, "true"], capture_output=True, check=False).returncode:
        ALLOWED_SKIPS.append(reason)
SAMPLES = Path(__file__).parents[2] / "shared" / "data"
if not SAMPLES.is_dir():  # real archives beside the checkout, which not every machine has
    ALLOWED_SKIPS.append("needs ../shared/")


def main(path: str) -> int:
    """Print one line of counts and the reason of each skip; 1 when nothing ran or a skip is not allowed."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"error: pytest left no results ({error})", file=sys.stderr)
        return 1
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None and case not in failed]
    passed = len(cases) - len(failed) - len(skipped)
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    refused = 0
    for case in skipped:
        reason = case.find("skipped").get("message", "")  # type: ignore[union-attr]
        refused += not any(allowed in reason for allowed in ALLOWED_SKIPS)
        print(f"skipped {case.get('classname')}::{case.get('name')}: {reason}")
    if not passed:
        print("error: no test passed", file=sys.stderr)
    if refused:
        print(f"error: {refused} skipped for another reason than {ALLOWED_SKIPS}", file=sys.stderr)
    return int(bool(failed or refused or not passed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
