"""Writes pysrc/samplicator/elements.txt, the names of the IANA IPFIX information elements.

The names are IANA's (https://www.iana.org/assignments/ipfix, a public registry); they are taken from the table that the
PyPI package `netflow` carries, which copies the registry's CSV file. Needed only to bring
the committed file up to date:

    pip install --no-deps --target build/netflow netflow==0.12.2
    PYTHONPATH=build/netflow python3 deploy/ipfix/generate.py
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "pysrc" / "samplicator" / "elements.txt"
HEAD = """\
# IANA IPFIX information elements, number and name, one a line. Written by deploy/ipfix/generate.py from the table of
# the PyPI package netflow 0.12.2, a copy of IANA's registry. NetFlow v9 field types 1..127 have the same numbers.
"""


def main() -> None:
    from netflow.ipfix import IPFIXFieldTypes

    lines = [f"{row[0]} {row[1]}\n" for row in IPFIXFieldTypes.iana_field_types if row[1].isidentifier() and row[0]]
    TARGET.write_text(HEAD + "".join(lines))
    print(f"{len(lines)} elements")


if __name__ == "__main__":
    main()
