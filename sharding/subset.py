"""`python -m sharding.subset`: choose samples of a data set, as a manifest and indexes over its shards."""

import argparse
import json

from sharding.command import run_command
from sharding.errors import ConfigError

_EXAMPLES = """\
examples:
  python -m sharding.subset /data/shards --name clear --where contains_cloud_or_shadow=false
  python -m sharding.subset s3://bucket/shards --name water --label "Inland waters" --label "Marine waters"
  python -m sharding.subset /data/shards@2 --name nordic --split train --where country=Finland --where country=Norway

No shard is read or written. Train on it, or look at it, as URL@NAME. Of several --split, --label or --where of one
name, any may hold; those of different names must all hold. Statistics stay those of the whole data set.
"""


def main(argv: list[str] | None = None) -> int:
    """Choose; 0 when the subset is there, also when it was already."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.subset",
        description="Make a named selection of a data set's samples without copying one.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the data set, also one of its versions (URL@2)")
    parser.add_argument("--name", required=True, help="of the subset: letters, digits, _ and -")
    parser.add_argument("--split", action="append", default=[], help="only samples of this split; again for more")
    parser.add_argument("--label", action="append", default=[], help="only samples with this label; again for more")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only samples whose attribute (country, source, level, contains_seasonal_snow, …) has this value; "
        "NAME<VALUE and NAME>VALUE compare numbers and dates; again for more",
    )
    parser.add_argument(
        "--keys", default="", metavar="FILE", help="only the samples whose keys this file lists, one a line"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    from sharding.selection import make_subset, parse_rules

    rules = parse_rules(arguments.split, arguments.label, arguments.where, arguments.keys)
    if not rules:
        raise ConfigError("nothing was chosen by; give --split, --label, --where or --keys")
    figures = make_subset(arguments.url, arguments.name, rules)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return 0
    chosen = ", ".join(f"{count} {split}" for split, count in figures["splits"].items())
    print(f"{figures['samples']} of {figures['of']} samples ({chosen}): {figures['url']}")
    return 0


if __name__ == "__main__":
    run_command(main)
