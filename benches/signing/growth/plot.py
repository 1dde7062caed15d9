#!/usr/bin/env python3
"""Draws the figures of `make bench FLAGS="--table growth --json FILE"`: plot.py FILE >docs/images/growth.svg"""

import json
import math
import sys

# Member, factor to milliseconds, name and colour.
LINES = [
    ("start_secs", 1000, "start of the service", "#b5533c"),
    ("create_ms", 1, "CreateTenant", "#7a5195"),
    ("rotate_ms", 1, "RotateSigningKey", "#c2860a"),
    ("first_use_ms", 1, "first signature of a key", "#2f7d4f"),
    ("sign_p50_us", 0.001, "Sign, one at a time", "#1f6fb2"),
    ("jwks_p50_us", 0.001, "JWKS", "#555555"),
]
LEFT, TOP, WIDTH, HEIGHT = 70, 20, 420, 320

rows = json.load(open(sys.argv[1]))["growth"]["rows"]
values = [row[member] * factor for member, factor, _, _ in LINES for row in rows if row.get(member)]
low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
last = max(math.log10(row["tenants"]) for row in rows) or 1


def x(tenants):
    return LEFT + WIDTH * math.log10(tenants) / last


def y(millis):
    return TOP + HEIGHT * (high - math.log10(millis)) / (high - low)


def unit(exponent):
    return f"{10**exponent} ms" if exponent < 3 else f"{10 ** (exponent - 3)} s"


print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 190} {TOP + HEIGHT + 50}"')
print('     font-family="sans-serif" font-size="12" role="img" aria-label="Times by the number of tenants">')
print('<rect width="100%" height="100%" fill="#ffffff"/>')
for exponent in range(low, high + 1):
    height = y(10.0**exponent)
    print(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{height:.1f}" y2="{height:.1f}" stroke="#dddddd"/>')
    print(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{unit(exponent)}</text>')
for row in rows:
    across, bottom = x(row["tenants"]), TOP + HEIGHT
    print(f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{bottom}" stroke="#dddddd"/>')
    print(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{row["tenants"]:,}</text>')
print(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">tenants, of three keys each</text>')
taken = []
for member, factor, name, colour in LINES:
    points = [(x(row["tenants"]), y(row[member] * factor)) for row in rows if row.get(member)]
    if not points:
        continue
    path = " ".join(f"{across:.1f},{height:.1f}" for across, height in points)
    print(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for across, height in points:
        print(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="3" fill="{colour}"/>')
    # Names that would stand on each other make room.
    place = points[-1][1]
    while any(abs(place - other) < 14 for other in taken):
        place += 2
    taken.append(place)
    print(f'<text x="{points[-1][0] + 10:.1f}" y="{place + 4:.1f}" fill="{colour}">{name}</text>')
print("</svg>")
